package devstack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standby starts a streaming standby of the server, asynchronous and open for
// reading. The caller closes it.
func (p *Postgres) Standby(ctx context.Context) (*Postgres, error) {
	s := &Postgres{cfg: p.cfg, account: p.account, primary: p}
	s.cfg.Dir, s.cfg.Port = "", 0
	if err := s.follow(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (p *Postgres) follow(ctx context.Context) error {
	if err := p.choosePlace(); err != nil {
		return err
	}
	if err := p.makeFolder(p.cfg.Dir); err != nil {
		return err
	}
	if err := p.run(ctx, p.cfg.Dir, "pg_basebackup", "-D", p.cfg.Dir, "-d", p.primary.conninfo(),
		"-R", "-X", "stream", "-c", "fast", "--no-sync"); err != nil {
		return err
	}
	return p.start(ctx)
}

func (p *Postgres) conninfo() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", p.cfg.Port)
}

// PauseReplay cuts a standby from its primary and stops its replay. What the
// primary commits from now on is lost at a promotion, as with an asynchronous
// standby that was behind.
func (p *Postgres) PauseReplay(ctx context.Context) error {
	// A paused replay would not notice the new setting, so the receiver goes first.
	if err := p.exec(ctx, `alter system set primary_conninfo = ''`, `select pg_reload_conf()`); err != nil {
		return err
	}
	if err := p.await(ctx, `select not exists (select from pg_stat_wal_receiver)`); err != nil {
		return err
	}
	if err := p.exec(ctx, `select pg_wal_replay_pause()`); err != nil {
		return err
	}
	return p.await(ctx, `select pg_get_wal_replay_pause_state() = 'paused'`)
}

// ResumeReplay lets a standby follow its primary again.
func (p *Postgres) ResumeReplay(ctx context.Context) error {
	return p.exec(ctx, fmt.Sprintf(`alter system set primary_conninfo = '%s'`, p.primary.conninfo()),
		`select pg_reload_conf()`, `select pg_wal_replay_resume()`)
}

// CatchUp waits until a standby has replayed what its primary has committed
// before the call.
func (p *Postgres) CatchUp(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.primary.URL("postgres"))
	if err != nil {
		return fmt.Errorf("asking the primary how far it is: %w", err)
	}
	defer conn.Close(ctx)
	var lsn string
	if err := conn.QueryRow(ctx, `select pg_current_wal_flush_lsn()::text`).Scan(&lsn); err != nil {
		return fmt.Errorf("asking the primary how far it is: %w", err)
	}
	return p.await(ctx, fmt.Sprintf(`select coalesce(pg_last_wal_replay_lsn() >= '%s', false)`, lsn))
}

// Promote makes a standby a primary and returns when it takes writes. The old
// primary is left alone.
func (p *Postgres) Promote(ctx context.Context) error {
	if err := p.exec(ctx, `select pg_wal_replay_resume()`, `select pg_promote(true, 30)`); err != nil {
		return err
	}
	return p.await(ctx, `select not pg_is_in_recovery()`)
}

// await asks until the answer is true, for a minute at most.
func (p *Postgres) await(ctx context.Context, question string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("a minute was not enough"))
	defer cancel()
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connecting to postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for {
		var yes bool
		if err := conn.QueryRow(ctx, question).Scan(&yes); err != nil {
			return fmt.Errorf("awaiting %q: %w", question, err)
		}
		if yes {
			return nil
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("awaiting %q: %w", question, err)
		}
	}
}
