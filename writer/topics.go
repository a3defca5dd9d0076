package main

import (
	"context"
	"fmt"
	"os"

	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/service"
)

type topicsCommand struct{}

// Run makes the topics that are missing, as the contracts say, and checks those
// that there are. The relay does the same with what it finds; this command is for
// users who may make topics where the relay's may not.
func (c *topicsCommand) Run(ctx context.Context, s *service.Settings) error {
	contracts, err := s.Contracts()
	if err != nil {
		return service.Usage(err).Try("writer lint")
	}
	admin, err := kafka.NewAdmin(s.Brokers("topics"))
	if err != nil {
		return service.Usage(err)
	}
	defer admin.Close()
	for _, category := range contracts.Categories() {
		name := kafka.TopicName(s.Prefix, category.Name)
		topic, err := kafka.EnsureTopic(ctx, admin, name, category.Partitions)
		if err != nil {
			return err
		}
		fmt.Printf("%s has %d partitions\n", name, topic.Partitions)
		for _, warning := range topic.Warnings {
			fmt.Fprintf(os.Stderr, "%s: %s\n", name, warning)
		}
	}
	return nil
}
