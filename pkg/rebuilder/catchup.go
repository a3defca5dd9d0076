package rebuilder

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/refoldhq/refold/pkg/engine"
)

// feeding is the engine that feeds the version from within the job, until those
// elsewhere have taken it over.
type feeding struct {
	stop context.CancelFunc
	done chan struct{}
}

// feed starts feeding the version, once.
func (j *job) feed(ctx context.Context) {
	if j.feeding != nil {
		return
	}
	feeding, stop := context.WithCancel(ctx)
	j.feeding = j.startFeeding(feeding, stop)
}

func (j *job) startFeeding(ctx context.Context, stop context.CancelFunc) *feeding {
	f := &feeding{stop: stop, done: make(chan struct{})}
	// Its counters are those of the process that feeds for good.
	e := engine.New(engine.Config{DatabaseURL: j.cfg.DatabaseURL, Kafka: j.cfg.Kafka, Prefix: j.cfg.Prefix, Owner: j.cfg.Owner}, j.pool, j.deps.Schemas,
		j.events, j.log, prometheus.NewRegistry())
	feed := engine.Feed{Version: j.version, Plan: j.plan, Categories: j.categories}
	go func() {
		defer close(f.done)
		if err := e.Run(ctx, []engine.Feed{feed}); err != nil {
			j.log.Warn("feeding the version has ended", "err", err)
		}
	}()
	return f
}

func (j *job) stopFeeding() {
	if j.feeding != nil {
		j.feeding.stop()
		<-j.feeding.done
		j.feeding = nil
	}
}

// enough is how far behind the event table a version may be to be verified.
const enough = 1000

// catchUp applies what was appended meanwhile, through the engine.
func (j *job) catchUp(ctx context.Context) error {
	j.feed(ctx)
	for {
		lag, alarm, err := j.lag(ctx)
		if err != nil {
			return err
		}
		j.meter.setLag(lag)
		if lag <= enough && alarm == "" {
			j.meter.wait("")
			return j.advance(ctx, StepVerify, nil)
		}
		if alarm != "" {
			j.meter.wait("a partition stands: " + alarm)
		} else {
			j.meter.wait(fmt.Sprintf("applying %d events that came meanwhile", lag))
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
		if err := j.gate(ctx, 0); err != nil {
			return err
		}
	}
}

// lag returns how many events of the event table the version has not applied,
// and why a partition of it stands.
func (j *job) lag(ctx context.Context) (lag int64, alarm string, err error) {
	for _, c := range j.categories {
		heads, err := j.events.Heads(ctx, c)
		if err != nil {
			return 0, "", err
		}
		for _, head := range heads {
			lag += head
		}
	}
	var applied int64
	err = j.pool.QueryRow(ctx, `select coalesce((select sum(s) from refold.progress, unnest(seqs) s where projection = $1 and version = $2), 0)::bigint,
		coalesce((select min(alarm) from refold.progress where projection = $1 and version = $2), '')`, j.name, j.version.Number).Scan(&applied, &alarm)
	if err != nil {
		return 0, "", fmt.Errorf("reading the progress of %s version %d: %w", j.name, j.version.Number, err)
	}
	return max(0, lag-applied), alarm, nil
}
