package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/test/platform"
)

// jump is compiled into time.Now of the programs under test: every second their
// wall clock shows another time, up to a year off, while the monotonic one runs on,
// as when somebody sets a machine's clock.
const jump = `
	offsets := [...]int64{0, 3600, -86400, 60, 31536000, -7200, -31536000, 1}
	sec += offsets[mono/1_000_000_000%int64(len(offsets))]
`

// jumping builds the programs with a clock that jumps.
func jumping(t *testing.T) (dir string) {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	require.NoError(t, err)
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	require.NoError(t, err)
	_, body, found := strings.Cut(string(source), "\nfunc Now() Time {\n")
	require.True(t, found)
	first, _, _ := strings.Cut(body, "\n")
	require.Contains(t, first, "sec, nsec, mono :=", "Go reads the clock in another way: this test must follow it")
	dir = filepath.Join(platform.Root(), ".cache", "clock") // a folder of its own for ever, so that what is compiled is kept
	changed := filepath.Join(dir, "time.go")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(changed, []byte(strings.Replace(string(source), "\nfunc Now() Time {\n"+first, "\nfunc Now() Time {\n"+first+jump, 1)), 0o600))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(changed+".json", overlay, 0o600))
	build := exec.Command("go", "build", "-overlay", changed+".json", "-o", dir+string(filepath.Separator), "./writer", "./projector")
	build.Dir = platform.Root()
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

// Nothing is ordered, leased, kept or forgotten by the wall clock of a program: with
// clocks that jump by hours, days and a year in half of them, no lease changes
// hands, keys replay, tokens hold, and log, topic and rows are what they should be.
func TestClocksThatJumpChangeNothing(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the clock is read in another way there")
	}
	ctx := context.Background()
	stack := platform.New(t, devstack.Database(t), devstack.RealKafka(t))
	stack.Schemas = filepath.Join(platform.Root(), "test", "e2e", "hostile")
	wild := *stack
	wild.UseBinaries(jumping(t))
	programs := []*platform.Program{wild.Writer(), stack.Writer(), wild.Projector(), stack.Projector(), wild.Queries()}
	awaitJump(t, programs[0])
	conn, err := pgx.Connect(ctx, stack.DatabaseURL)
	require.NoError(t, err)
	defer conn.Close(ctx)
	owners := func() (s string) {
		err := conn.QueryRow(ctx, `select coalesce((select string_agg(partition || ':' || fence || ':' || coalesce(owner, ''), ' ' order by partition) from refold.relay_partition), '')
			|| ' / ' || coalesce((select string_agg(partition || ':' || owner_epoch || ':' || coalesce(owner, ''), ' ' order by partition) from refold.progress), '')`).Scan(&s)
		require.NoError(t, err)
		return s
	}
	settled, since := owners(), time.Now()
	require.Eventually(t, func() bool { // relays and projectors have shared the partitions
		if now := owners(); now != settled {
			settled, since = now, time.Now()
		}
		return time.Since(since) > 8*time.Second
	}, 2*time.Minute, 200*time.Millisecond)

	var began time.Time
	require.NoError(t, conn.QueryRow(ctx, `select clock_timestamp()`).Scan(&began))
	clients := make([]*jumper, 8)
	var all sync.WaitGroup
	for i := range clients {
		clients[i] = &jumper{stream: fmt.Sprint("s", i), writer: platform.NewClient(t, programs[i%2].URL()), reader: platform.NewClient(t, programs[4].URL())}
		all.Go(func() { clients[i].work(20 * time.Second) })
	}
	all.Wait()
	total := int64(0)
	for _, c := range clients {
		require.NoError(t, c.err)
		require.Greater(t, c.version, int64(20))
		total += c.version
	}
	t.Logf("%d events", total)
	require.Equal(t, settled, owners(), "nobody has lost a lease or a partition")
	for _, p := range programs {
		res, err := http.Get(p.AdminURL() + "/readyz")
		require.NoError(t, err)
		res.Body.Close()
		require.Equal(t, http.StatusOK, res.StatusCode, p.Name)
	}
	var events, odd int64
	require.NoError(t, conn.QueryRow(ctx, `select count(*), count(*) filter (where recorded not between $1 and clock_timestamp() or time <> recorded) from refold.event`, began).Scan(&events, &odd))
	require.Equal(t, total, events)
	require.Zero(t, odd, "times are those of the database")
	for _, command := range [][]string{{"writer", "verify"}, {"projector", "verify", "probes"}} {
		out, errs, code := stack.Run(command[0], command[1:]...)
		require.Zero(t, code, "%v: %s%s", command, out, errs)
	}
}

// awaitJump returns once a program has told a time that is hours off.
func awaitJump(t *testing.T, p *platform.Program) {
	t.Helper()
	require.Eventually(t, func() bool {
		res, err := http.Get(p.AdminURL() + "/livez")
		if err != nil {
			return false
		}
		res.Body.Close()
		told, err := http.ParseTime(res.Header.Get("Date"))
		return err == nil && time.Since(told).Abs() > 30*time.Minute
	}, time.Minute, 300*time.Millisecond)
}

// jumper appends to a stream of its own, repeats some appends, and reads its row.
type jumper struct {
	stream         string
	writer, reader *platform.Client
	version        int64
	err            error
}

func (j *jumper) work(duration time.Duration) {
	for end := time.Now().Add(duration); time.Now().Before(end) && j.err == nil; {
		j.err = j.round()
	}
}

func (j *jumper) round() error {
	body := fmt.Appendf(nil, `{"expectedVersion": %d, "events": [{"type": "Probed", "data": {"n": 1}}]}`, j.version)
	key := http.Header{"Idempotency-Key": {fmt.Sprint(j.stream, "-", j.version)}}
	var first, again platform.Appended
	for i, done := range []*platform.Appended{&first, &again} {
		a, err := j.writer.Do(http.MethodPost, "/v1/streams/Probe/"+j.stream+"/events", key, body)
		if err != nil || a.Status != http.StatusCreated-i { // the second is a replay
			return fmt.Errorf("append %d of %s: %d %s %w", j.version, j.stream, a.Status, a.Body, err)
		}
		if err := a.Decode(done); err != nil {
			return err
		}
	}
	if first.Events[0] != again.Events[0] {
		return fmt.Errorf("the replay tells %v, the append told %v", again.Events[0], first.Events[0])
	}
	j.version++
	a, err := j.reader.Do(http.MethodGet, probesPath+"/"+j.stream, http.Header{"Refold-Token": {first.Token}, "Refold-Wait": {"20s"}}, nil)
	if err != nil || a.Status != http.StatusOK {
		return fmt.Errorf("reading %s: %d %s %w", j.stream, a.Status, a.Body, err)
	}
	var row struct{ Events int64 }
	if err := a.Decode(&row); err != nil || row.Events != j.version {
		return fmt.Errorf("the row of %s tells of %d events, there are %d: %w", j.stream, row.Events, j.version, err)
	}
	return nil
}
