package main

import (
	"context"
	"fmt"

	"github.com/refoldhq/refold/pkg/postgres"
	"github.com/refoldhq/refold/pkg/service"
)

type migrateCommand struct{}

// Run migrates and says what was missing.
func (c *migrateCommand) Run(ctx context.Context, s *service.Settings) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: s.DatabaseURL, AppName: "refold-migrate", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	missing, err := postgres.Missing(ctx, pool)
	if err != nil {
		return err
	}
	if err := postgres.Migrate(ctx, pool); err != nil {
		return err
	}
	if len(missing) == 0 {
		fmt.Println("the schema refold has every migration")
		return nil
	}
	fmt.Printf("the schema refold has every migration now: %v were applied\n", missing)
	return nil
}
