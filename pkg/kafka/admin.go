package kafka

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// NewAdmin returns a client for topics and groups, which the caller closes. It
// does not dial.
func NewAdmin(c Config) (*kadm.Client, error) {
	options, err := c.Options()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("making a client for the brokers: %w", err)
	}
	return kadm.NewClient(client), nil
}
