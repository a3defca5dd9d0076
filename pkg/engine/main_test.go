package engine_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/refoldhq/refold/pkg/devstack"
)

// Whatever the tests do to workers, none leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, devstack.IgnoreServers()) }
