package query_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// rounds is how often TestReadYourWritesOnTwoReplicasThroughRebalancesAndFlips
// appends and reads: REFOLD_ROUNDS, 500 unless set.
func rounds() int64 {
	if n, err := strconv.ParseInt(os.Getenv("REFOLD_ROUNDS"), 10, 64); err == nil {
		return n
	}
	return 500
}

// Whoever has appended reads it at any replica, by key and in lists, while
// partitions move from engine to engine and versions serve in turn.
func TestReadYourWritesOnTwoReplicasThroughRebalancesAndFlips(t *testing.T) {
	p := startPlatform(t, definition)
	p.member("host")
	p.served()
	replicas := []*replica{p.replica(), p.replica()}
	p.settle(replicas[0], "seed", 1)
	p.rebuild()
	endStorm := p.storm()
	endFlips := p.flips(200*time.Millisecond, nil)
	var begun, done, stale, failed atomic.Int64
	read := func(r *replica, n int, path, token string) (contained string) {
		a := r.get(path, "Refold-Token", token, "Refold-Wait", "30s")
		switch {
		case a.status != http.StatusOK:
			failed.Add(1)
			t.Errorf("%s in round %d: %d %s", path, n, a.status, a.body)
		case !contains(a.body, has(n)):
			stale.Add(1)
			t.Errorf("%s in round %d is stale: %s", path, n, a.body)
		}
		return a.header.Get("Refold-Token")
	}
	var all sync.WaitGroup
	for worker := range min(256, rounds()/8) { // many, as each waits for the engines now and then
		all.Go(func() {
			key := fmt.Sprintf("w%d", worker)
			for n := 1; begun.Add(1) <= rounds() && !t.Failed(); n++ {
				contained := read(replicas[n%2], n, items+"/"+key, p.put(key, n).String())
				// The answer's token takes the session along, to another replica and a list.
				read(replicas[(n+1)%2], n, items+"?key=eq."+key, contained)
				done.Add(1)
			}
		})
	}
	all.Wait()
	t.Logf("%d rounds of two reads: %d stale answers, %d errors; %d flips, %d rebalances", done.Load(), stale.Load(), failed.Load(), endFlips(), 2*endStorm())
}

// flips has the two newest versions serve in turn until end is called, which
// returns how often; each tells which one serves since the flip's answer.
func (p *platform) flips(every time.Duration, each func(serves int)) (end func() int) {
	ended, counted := make(chan struct{}), make(chan int, 1)
	go func() {
		n := 0
		for !waitOr(ended, every) {
			serves, err := p.rebuilder().RollBack(ctx, "items")
			if err != nil {
				p.t.Errorf("flipping: %v", err)
				break
			}
			if n++; each != nil {
				each(serves)
			}
		}
		counted <- n
	}()
	return func() int { close(ended); return <-counted }
}

// Readers who send no token, at one replica each, never see a row go back,
// whichever version serves, however late the replica hears of changes and flips;
// and what a flip has put out of service is not given for longer than kept answers
// are without a sign of life.
func TestNoReaderGoesBackAcrossFlips(t *testing.T) {
	p := startPlatform(t, definition)
	p.member("host")
	p.served()
	const keys = 20
	key := func(i int) string { return fmt.Sprintf("k%03d", i%keys) }
	server := p.pool.Config().ConnConfig
	proxy := devstack.StartProxy(t, fmt.Sprintf("%s:%d", server.Host, server.Port))
	replicas := []*replica{p.replica(), p.replicaAt(proxy.URL(p.url()), readmodel.Config{})}
	for i := range keys {
		p.settle(replicas[0], key(i), 0)
	}
	p.rebuild()
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { // each row counts up
		for n := keys; !waitOr(stop, 0); n++ {
			p.put(key(n), n/keys)
		}
	})
	all.Go(func() { // the second replica hears late
		for !waitOr(stop, 100*time.Millisecond) {
			proxy.Hold(devstack.ToClient)
			waitOr(stop, 700*time.Millisecond)
			proxy.Release(devstack.ToClient)
		}
	})
	var flipped atomic.Pointer[served]
	var oldest atomic.Int64
	var reads atomic.Int64
	for i, r := range replicas {
		for reader := range 3 {
			all.Go(func() {
				last := map[string]int64{}
				for n := reader; !waitOr(stop, 0); n++ {
					path, want := items+"/"+key(n), http.StatusOK
					switch {
					case reader == 0:
						path = items + "?key=in.(" + key(n) + "," + key(n+1) + ")"
					case n%5 == 0: // nobody has asked for it, so nothing is kept
						path, want = fmt.Sprintf("%s/nobody-%d-%d", items, reader, n), http.StatusNotFound
					}
					asked, now := time.Now(), flipped.Load()
					a := r.get(path)
					if a.status != want {
						t.Errorf("%s: %d %s", path, a.status, a.body)
						return
					}
					if now != nil && now == flipped.Load() && a.header.Get("Refold-Projection-Version") != strconv.Itoa(now.version) {
						oldest.Store(max(oldest.Load(), int64(asked.Sub(now.since))))
					}
					for k, count := range countsOf(t, path, a.body) {
						if count < last[k] {
							t.Errorf("replica %d: %s went back from %d to %d in version %s", i, k, last[k], count, a.header.Get("Refold-Projection-Version"))
							return
						}
						last[k] = count
					}
					reads.Add(1)
				}
			})
		}
	}
	endFlips := p.flips(50*time.Millisecond, func(serves int) { flipped.Store(&served{serves, time.Now()}) })
	eventually(t, "everybody reads", func() bool { return reads.Load() > 4000 || t.Failed() })
	n := endFlips()
	close(stop)
	all.Wait()
	t.Logf("%d reads, %d flips; the version out of service was given up to %s after the flip's answer", reads.Load(), n, time.Duration(oldest.Load()))
	require.Greater(t, n, 5)
	require.Less(t, time.Duration(oldest.Load()), readmodel.MaxUnseen+2*time.Second) // 2 s for a slow machine
}

// served is which version serves, and since when at the latest.
type served struct {
	version int
	since   time.Time
}

// countsOf returns the field n of the rows of an answer, by key or place.
func countsOf(t *testing.T, path, body string) map[string]int64 {
	var one struct {
		N    int64
		Rows []struct{ N int64 }
	}
	if err := json.Unmarshal([]byte(body), &one); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	if !strings.Contains(path, "?") {
		return map[string]int64{path: one.N}
	}
	counts := map[string]int64{}
	for i, row := range one.Rows {
		counts[fmt.Sprintf("%s #%d", path, i)] = row.N
	}
	return counts
}

// A walk that meets promotions, rollbacks and writes returns every row that
// existed throughout exactly once, in order.
func TestAWalkAcrossRebuildsReturnsWhatExistedThroughoutOnce(t *testing.T) {
	p := startPlatform(t, definition)
	p.member("host")
	p.served()
	r := p.replica()
	const rows = 120
	for i := range rows {
		p.settle(r, fmt.Sprintf("k%03d", i), i%7)
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { // rows come and go between those that are counted
		for i := 0; !waitOr(stop, time.Millisecond); i++ {
			p.put(fmt.Sprintf("x%03d", i%50), 3)
			if _, err := p.append(fmt.Sprintf("x%03d", (i+25)%50), nil); err != nil {
				t.Error(err)
			}
		}
	})
	walks := map[string]*atomic.Int64{"key": {}, "key.desc": {}, "color,n": {}}
	versions := sync.Map{}
	for order, count := range walks {
		all.Go(func() {
			for !waitOr(stop, 0) {
				keys := p.slowWalk(r, order, &versions)
				if t.Failed() {
					return
				}
				if order == "color,n" {
					slices.Sort(keys)
				}
				if order == "key.desc" {
					slices.Reverse(keys)
				}
				if len(keys) != rows || !slices.IsSorted(keys) || len(slices.Compact(keys)) != rows {
					t.Errorf("a walk by %s has returned %d rows: %v", order, len(keys), keys)
					return
				}
				count.Add(1)
			}
		})
	}
	for range 2 {
		p.rebuild()
		p.rollBack()
		p.rollBack()
	}
	eventually(t, "every walk has come to its end", func() bool {
		return t.Failed() || !slices.ContainsFunc([]string{"key", "key.desc", "color,n"}, func(o string) bool { return walks[o].Load() < 2 })
	})
	close(stop)
	all.Wait()
	n := 0
	versions.Range(func(any, any) bool { n++; return true })
	require.Greater(t, n, 1, "walks have met several versions")
}

// slowWalk walks a page after another and returns the keys of the rows that exist
// throughout.
func (p *platform) slowWalk(r *replica, order string, versions *sync.Map) (keys []string) {
	values := url.Values{"select": {"key"}, "order": {order}, "limit": {"7"}}
	for {
		a := r.get(items + "?" + values.Encode())
		if a.status != http.StatusOK {
			p.t.Errorf("walking by %s: %d %s", order, a.status, a.body)
			return nil
		}
		versions.Store(a.header.Get("Refold-Projection-Version"), true)
		l := a.list(p.t)
		for _, row := range l.Rows {
			if key := row["key"].(string); key[0] == 'k' {
				keys = append(keys, key)
			}
		}
		if l.Next == nil {
			return keys
		}
		values.Set("cursor", *l.Next)
		time.Sleep(2 * time.Millisecond) // so that flips fall into walks
	}
}
