package devstack_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
)

type proxied struct {
	proxy   *devstack.Proxy
	url     string
	direct  *pgx.Conn
	through *pgx.Conn
}

func setupProxy(t *testing.T) proxied {
	t.Helper()
	url := devstack.Database(t)
	config, err := pgconn.ParseConfig(url)
	require.NoError(t, err)
	target := config.Host + ":" + itoa(config.Port)
	p := proxied{proxy: devstack.StartProxy(t, target), direct: connect(t, url)}
	p.url = p.proxy.URL(url)
	p.through = connect(t, p.url)
	execute(t, p.direct, `create table late (n int)`)
	return p
}

func (p proxied) insert(result chan<- error) {
	_, err := p.through.Exec(context.Background(), `insert into late values (1)`)
	result <- err
}

func (p proxied) rows(t *testing.T) int { return number(t, p.direct, `select count(*) from late`) }

func TestSeveredConnectionStillDeliversWhatItsClientHadSent(t *testing.T) {
	t.Parallel()
	p := setupProxy(t)
	p.proxy.HoldWhen(devstack.ToServer, func(read []byte) bool { return bytes.Contains(read, []byte("commit")) })
	result := make(chan error, 1)
	go func() { // one statement in a transaction, whose COMMIT is on its way
		tx, err := p.through.Begin(context.Background())
		if err == nil {
			_, err = tx.Exec(context.Background(), `insert into late values (1)`)
		}
		if err == nil {
			err = tx.Commit(context.Background())
		}
		result <- err
	}()
	p.proxy.AwaitHeld(devstack.ToServer)
	p.proxy.Sever()
	require.Error(t, <-result, "the client has given it up")
	require.Zero(t, p.rows(t))
	p.proxy.Release(devstack.ToServer)
	require.Eventually(t, func() bool { return p.rows(t) == 1 }, waitLimit, pollEvery)
}

func TestDiscardedReplyLeavesTheWorkDone(t *testing.T) {
	t.Parallel()
	p := setupProxy(t)
	_, err := p.through.Prepare(t.Context(), "i", `insert into late values (1)`)
	require.NoError(t, err)
	p.proxy.Discard(devstack.ToClient)
	result := make(chan error, 1)
	go func() { _, err := p.through.Exec(context.Background(), "i"); result <- err }()
	require.Eventually(t, func() bool { return p.rows(t) == 1 }, waitLimit, pollEvery)
	select {
	case err := <-result:
		t.Fatalf("an answer came through: %v", err)
	default:
	}
	p.proxy.Cut()
	require.Error(t, <-result)
}

func TestBlackholeLetsNothingThroughUntilItIsHealed(t *testing.T) {
	t.Parallel()
	p := setupProxy(t)
	p.proxy.Blackhole()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := pgx.Connect(ctx, p.url)
	require.ErrorIs(t, err, context.DeadlineExceeded, "the connection stands and nothing answers")
	p.proxy.Heal()
	require.Equal(t, 1, number(t, connect(t, p.url), `select 1`))
	require.Equal(t, 1, number(t, p.through, `select 1`), "an old connection lives on")
}

func TestDelayMakesAnswersLate(t *testing.T) {
	t.Parallel()
	p := setupProxy(t)
	const late = 50 * time.Millisecond
	p.proxy.Delay(devstack.ToClient, late)
	began := time.Now()
	require.Equal(t, 1, number(t, p.through, `select 1`))
	require.GreaterOrEqual(t, time.Since(began), late)
}

func TestCutAndRefusedConnectionsFail(t *testing.T) {
	t.Parallel()
	p := setupProxy(t)
	p.proxy.Refuse()
	p.proxy.Cut()
	result := make(chan error, 1)
	p.insert(result)
	require.Error(t, <-result)
	_, err := pgx.Connect(t.Context(), p.url)
	require.Error(t, err)
	p.proxy.Heal()
	require.Equal(t, 1, number(t, connect(t, p.url), `select 1`))
}
