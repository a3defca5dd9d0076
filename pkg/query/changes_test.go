package query_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/event"
)

// follower is a client of the change feed: what it was told, and where it stands.
type follower struct {
	t        *testing.T
	path     string
	lastID   string
	rows     map[string]map[string]any // nil: removed
	versions []int
	told     int
}

type sse struct {
	id, event, data string
}

// follow reads events until stop says so or the stream ends.
func (f *follower) follow(r *replica, stop func() bool) {
	f.t.Helper()
	during, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(during, http.MethodGet, r.url+f.path, nil)
	require.NoError(f.t, err)
	if f.lastID != "" {
		req.Header.Set("Last-Event-ID", f.lastID)
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(f.t, err)
	defer res.Body.Close()
	require.Equal(f.t, http.StatusOK, res.StatusCode)
	require.Equal(f.t, "text/event-stream", res.Header.Get("Content-Type"))
	in := bufio.NewReader(res.Body)
	for {
		e, err := readSSE(in)
		if err != nil {
			require.NoError(f.t, during.Err(), "no change within 60 s")
			return
		}
		f.take(e)
		if stop() {
			return
		}
	}
}

func readSSE(in *bufio.Reader) (e sse, err error) {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return e, err
		}
		line = strings.TrimSuffix(line, "\n")
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case line == "":
			return e, nil
		case name == "id":
			e.id = value
		case name == "event":
			e.event = value
		case name == "data":
			e.data = value
		}
	}
}

func (f *follower) take(e sse) {
	f.t.Helper()
	if e.id != "" {
		f.lastID = e.id
	}
	var data struct {
		Key     string
		Row     map[string]any
		Token   string
		Version int
	}
	if e.data != "" {
		require.NoError(f.t, json.Unmarshal([]byte(e.data), &data), e.data)
	}
	switch e.event {
	case "upsert", "remove":
		f.told++
		if before := f.rows[data.Key]; before != nil && data.Row != nil {
			require.GreaterOrEqual(f.t, data.Row["n"], before["n"], "%s went back", data.Key)
		}
		_, err := event.ParseToken(data.Token)
		require.NoError(f.t, err)
		require.Equal(f.t, e.event == "remove", data.Row == nil)
		f.rows[data.Key] = data.Row
	case "version":
		f.versions = append(f.versions, data.Version)
	}
}

func TestFollowersThatComeAndGoMissNothing(t *testing.T) {
	w := setup(t)
	replicas := []*replica{w.replica(), w.replica()}
	w.set("before", row(`{"n": 0}`))
	all := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}}
	red := &follower{t: t, path: items + "/changes?color=eq.RED", rows: map[string]map[string]any{}}
	for _, f := range []*follower{all, red} {
		f.follow(replicas[0], func() bool { return f.lastID != "" })
		require.NotEmpty(t, f.lastID, "there is an id before the first change")
	}

	seed := time.Now().UnixNano()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	const rounds = 1200
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range rounds {
			key := fmt.Sprintf("k%d", random.IntN(30))
			if random.IntN(5) == 0 {
				w.remove(key)
			} else {
				w.set(key, row(fmt.Sprintf(`{"n": %d, "color": %q}`, n, []string{"RED", "BLUE"}[random.IntN(2)])))
			}
		}
		w.set("last", row(`{"n": 1, "color": "RED"}`))
	}()
	for i, f := range []*follower{all, red} {
		for f.rows["last"] == nil {
			stopAt := f.told + 1 + rand.IntN(60)
			f.follow(replicas[(i+f.told)%2], func() bool { return f.told >= stopAt || f.rows["last"] != nil })
		}
	}
	<-done
	require.Nil(t, all.rows["before"], "it begins now")
	truth := map[string]map[string]any{}
	for _, r := range replicas[0].get(items + "?select=key,n,color&limit=1000").list(t).Rows {
		truth[r["key"].(string)] = r
	}
	for _, f := range []*follower{all, red} {
		f.follow(replicas[0], func() bool { return f.agrees(truth, f == red) })
		require.True(t, f.agrees(truth, f == red), f.path)
		require.Greater(t, len(f.rows), 20)
	}
}

// agrees tells whether what was told is what is.
func (f *follower) agrees(truth map[string]map[string]any, red bool) bool {
	for key, is := range truth {
		if key == "before" || red && is["color"] != "RED" {
			continue
		}
		if told := f.rows[key]; told == nil || fmt.Sprint(told["n"]) != is["n"].(json.Number).String() {
			return false
		}
	}
	for key, told := range f.rows {
		if told != nil && (truth[key] == nil || red && truth[key]["color"] != "RED") {
			return false
		}
	}
	return true
}

func TestAFollowerSeesAFlipAndGoesOn(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1}`))
	f := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}}
	f.follow(r, func() bool { return f.lastID != "" })
	w.set("b", row(`{"n": 2}`)) // while nobody follows
	w.version(2, definition)
	w.flip(2)
	go func() {
		two := row(`{"n": 7}`)
		w.setIn("rows_items_v2", 2, "c", &two, true)
	}()
	f.follow(r, func() bool { return f.rows["b"] != nil && f.rows["c"] != nil })
	require.Equal(t, []int{2}, f.versions)
}

func TestOneWhoWasAwayLongIsCaughtUp(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("first", row(`{"n": 1}`))
	f := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}}
	f.follow(r, func() bool { return f.lastID != "" })
	const keys = 4000 // several steps, and more than a feed itself catches up
	w.bulk(keys)
	stop := make(chan struct{})
	live := make(chan struct{})
	go func() { // changes go on meanwhile
		defer close(live)
		for n := 2; ; n++ {
			select {
			case <-stop:
				return
			default:
				w.set("live", row(fmt.Sprintf(`{"n": %d}`, n)))
			}
		}
	}()
	for len(f.rows) < keys+1 {
		stopAt := f.told + 1500
		f.follow(r, func() bool { return f.told >= stopAt || len(f.rows) == keys+1 })
	}
	close(stop)
	<-live
	w.set("end", row(`{"n": 1}`))
	f.follow(r, func() bool { return f.rows["end"] != nil })
	require.Len(t, f.rows, keys+2)
}

// bulk commits n rows, each with an event, and announces nothing.
func (w *world) bulk(n int) {
	w.t.Helper()
	var keys []string
	var slotList []int16
	var seqs []int64
	for i := range n {
		key := fmt.Sprintf("bulk%d", i)
		slot := event.SlotOf(key, slots)
		w.seqs[slot]++
		keys, slotList, seqs = append(keys, key), append(slotList, int16(slot)), append(seqs, w.seqs[slot])
	}
	value, err := w.encode["ItemSet"](row(`{}`))
	require.NoError(w.t, err)
	require.NoError(w.t, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value)
			select c.id, u.slot, u.seq, 1, gen_random_uuid(), now(), now(), u.key, 'ItemSet', $4 from refold.category c, unnest($1::text[], $2::smallint[], $3::bigint[]) u (key, slot, seq)`,
			keys, slotList, seqs, value); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `insert into refold.rows_items_v1 (projection_name, version, key, data) select 'items', 1, k, $2::text::jsonb from unnest($1::text[]) k`, keys, row(`{"n": 1}`)); err != nil {
			return err
		}
		for slot, seq := range w.seqs {
			if _, err := tx.Exec(ctx, `update refold.progress set seqs[array_position(slots, $1::smallint)] = $2 where partition = $3`, slot, seq, slot%partitions); err != nil {
				return err
			}
		}
		return nil
	}))
}

func TestAnIDIsJudged(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.fill(3)
	f := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}}
	f.follow(r, func() bool { return f.lastID != "" })
	require.Equal(t, http.StatusBadRequest, r.get(items+"/changes", "Last-Event-ID", "nonsense").status)
	require.Equal(t, http.StatusBadRequest, r.get(items+"/changes?nothing=eq.1").status)
	require.Equal(t, http.StatusBadRequest, r.get(items+"/changes?order=n").status)
	require.Equal(t, http.StatusNotFound, r.get("/v1/read-models/nothing/changes").status)
	_, err := w.pool.Exec(ctx, `delete from refold.event`) // archived
	require.NoError(t, err)
	_, err = w.pool.Exec(ctx, `update refold.progress set seqs = array(select s + 1 from unnest(seqs) s), next_offset = next_offset + 9`)
	require.NoError(t, err)
	req, err := http.NewRequest(http.MethodGet, r.url+items+"/changes", nil)
	require.NoError(t, err)
	req.Header.Set("Last-Event-ID", f.lastID)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Contains(t, string(raw), `{"reason":"too-old"}`)
	_, err = w.pool.Exec(ctx, `update refold.progress set seqs = array(select 0 from unnest(seqs))`) // the log has lost its tail
	require.NoError(t, err)
	require.Equal(t, http.StatusGone, r.get(items+"/changes", "Last-Event-ID", f.lastID).status)
}

func TestASlowFollowerIsToldToResume(t *testing.T) {
	w := setup(t)
	r := w.replica()
	req, err := http.NewRequest(http.MethodGet, r.url+items+"/changes", nil)
	require.NoError(t, err)
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { // a small window
		return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10) })
	}}
	slow := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	res, err := slow.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	in := bufio.NewReader(res.Body)
	f := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}}
	for f.lastID == "" {
		e, err := readSSE(in)
		require.NoError(t, err)
		f.take(e)
	}
	long := strings.Repeat("x", 200_000)
	const changes = 80 // more than the sockets' buffers hold
	quick := &follower{t: t, path: items + "/changes", lastID: f.lastID, rows: map[string]map[string]any{}}
	for i := range changes {
		w.set(fmt.Sprintf("k%d", i), row(fmt.Sprintf(`{"n": 1, "tags": [%q]}`, long)))
		if i%8 == 7 { // so that it is told in many batches, of which some find others waiting
			quick.follow(r, func() bool { return len(quick.rows) == i+1 })
		}
	}
	for {
		e, err := readSSE(in)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || e.event == "resume" {
			break
		}
		require.NoError(t, err)
		f.take(e)
	}
	require.True(t, len(f.rows) < changes, "%d", len(f.rows))
	f.follow(r, func() bool { return len(f.rows) == changes })
	require.Equal(t, changes, len(f.rows))
}

// answer has a version carry a request about a parked stream out, as an engine
// would: rows change and no progress moves.
func (w *world) answer(key string, n int) {
	w.t.Helper()
	require.NoError(w.t, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `update refold.rows_items_v1 set data = data || jsonb_build_object('n', $2::int) where key = $1`, key, n)
		if err == nil {
			_, err = tx.Exec(ctx, `insert into refold.row_request (projection, category, slot, stream, action, reason, outcomes, done) values ('items', 'Item', $2, $1, 'retry', 'mended', '{"1": "applied"}', clock_timestamp())`, key, event.SlotOf(key, slots))
		}
		return err
	}))
	w.announce(1, event.SlotOf(key, slots)%partitions, w.offsets[event.SlotOf(key, slots)%partitions], w.offsets[event.SlotOf(key, slots)%partitions], key)
}

// What comes of a parked stream has no event of its own: followers are told of it
// too, those that come later by the id that they have.
func TestWhatComesOfParkedStreamsIsTold(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1}`))
	w.set("b", row(`{"n": 1}`))
	f := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}}
	f.follow(r, func() bool { return f.lastID != "" })
	away := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}, lastID: f.lastID}
	started := false
	f.follow(r, func() bool {
		if !started {
			started = true
			w.answer("a", 2)
		}
		return f.rows["a"] != nil
	})
	require.EqualValues(t, 2, f.rows["a"]["n"])
	w.answer("b", 2)
	away.follow(r, func() bool { return away.rows["a"] != nil && away.rows["b"] != nil })
	require.EqualValues(t, 2, away.rows["b"]["n"])

	exported := strings.Split(r.get(items+"/export").body, "\n")
	var last struct{ Changes string }
	require.NoError(t, json.Unmarshal([]byte(exported[len(exported)-1]), &last))
	w.answer("b", 3)
	behind := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}, lastID: last.Changes}
	behind.follow(r, func() bool { return behind.rows["b"] != nil })
	require.EqualValues(t, 3, behind.rows["b"]["n"])
}

// Fields that are filled into the version that serves may change any row.
func TestFollowersAreToldOfADefinitionThatChangesInPlace(t *testing.T) {
	w := setup(t)
	r := w.replica()
	w.set("a", row(`{"n": 1}`))
	f := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}}
	f.follow(r, func() bool { return f.lastID != "" })
	before := f.lastID
	changed := false
	f.follow(r, func() bool {
		if !changed {
			changed = true
			plan := w.compile(strings.Replace(definition, "  ref: ", "  extra: {from: [ItemSet.name]}\n  ref: ", 1))
			_, err := w.pool.Exec(ctx, `update refold.projection_version set definition = $1, plan = $2`, plan.Source(), plan.Hash())
			require.NoError(t, err)
		}
		return len(f.versions) > 0
	})
	require.Equal(t, []int{1}, f.versions)
	late := &follower{t: t, path: items + "/changes", rows: map[string]map[string]any{}, lastID: before}
	late.follow(r, func() bool { return len(late.versions) > 0 })
}
