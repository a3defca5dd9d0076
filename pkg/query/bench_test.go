package query_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/readmodel"
)

// load makes b.N requests over 64 connections of its own. It does as little as a
// client can, so that the server is measured and not it.
func (r *replica) load(b *testing.B, path func(i int64) string) {
	const connections = 64
	var next atomic.Int64
	var all sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range connections {
		all.Go(func() {
			conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
			if err != nil {
				b.Error(err)
				return
			}
			defer conn.Close()
			in := bufio.NewReader(conn)
			var out []byte
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				out = fmt.Appendf(out[:0], "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", path(i))
				if _, err := conn.Write(out); err != nil {
					b.Error(err)
					return
				}
				if err := readAnswer(in); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}

func readAnswer(in *bufio.Reader) error {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("%w: %s", textproto.ProtocolError("unexpected answer"), line)
	}
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			_, err := io.CopyN(io.Discard, in, int64(length))
			return err
		}
		if text, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(text))); err != nil {
				return err
			}
		}
	}
}

func benchmarkReplica(b *testing.B, cfg readmodel.Config) *replica {
	w := setup(b)
	_, err := w.pool.Exec(ctx, `insert into refold.rows_items_v1 (projection_name, version, key, data)
		select 'items', 1, 'k-' || i, jsonb_build_object('name', 'name ' || i, 'n', i, 'color', 'RED') from generate_series(0, 99999) i`)
	require.NoError(b, err)
	_, err = w.pool.Exec(ctx, `vacuum analyze refold.rows_items_v1`)
	require.NoError(b, err)
	return w.replicaAt(w.pool.Config().ConnString(), cfg)
}

func key(i int64) string { return fmt.Sprintf("/v1/read-models/items/k-%d", i*7919%100_000) }

func BenchmarkGetUncached(b *testing.B) {
	benchmarkReplica(b, readmodel.Config{CacheBytes: -1}).load(b, key)
}

func BenchmarkGetCached(b *testing.B) {
	benchmarkReplica(b, readmodel.Config{}).load(b, func(i int64) string { return key(i % 1000) })
}

func BenchmarkPage(b *testing.B) {
	benchmarkReplica(b, readmodel.Config{CacheBytes: -1}).load(b, func(i int64) string {
		return fmt.Sprintf("/v1/read-models/items?color=eq.RED&n=gte.%d&order=n&limit=20", i*7919%100_000)
	})
}

// BenchmarkPageAtDepth reads pages that begin behind half of the rows, where many
// rows are equal in the first field of the order.
func BenchmarkPageAtDepth(b *testing.B) {
	r := benchmarkReplica(b, readmodel.Config{CacheBytes: -1})
	cursor, cursors := "", []string{}
	for page := range 90 {
		path := "/v1/read-models/items?order=color,n&limit=1000"
		if cursor != "" {
			path += "&cursor=" + cursor
		}
		if cursor = *r.get(path).list(b).Next; page > 50 {
			cursors = append(cursors, cursor)
		}
	}
	r.load(b, func(i int64) string {
		return fmt.Sprintf("/v1/read-models/items?order=color,n&limit=%d&cursor=%s", 18+i%5, cursors[i/5%int64(len(cursors))])
	})
}

// BenchmarkTokenWait reports what a wait for a token adds to the lag: how long
// after the commit of the row the answer is there that had waited for it, beside a
// read that waits for nothing.
func BenchmarkTokenWait(b *testing.B) {
	w := setup(b)
	r := w.replicaAt(w.url(), noCache)
	w.set("a", row(`{"n": 0}`))
	read := func(token event.Token) time.Duration {
		began := time.Now()
		a := r.get(items+"/a", "Refold-Token", token.String(), "Refold-Wait", "20s")
		require.Equal(b, http.StatusOK, a.status, a.body)
		return time.Since(began)
	}
	eventually(b, "the replica listens", func() bool { return r.get(items+"/a").header.Get("Refold-Staleness") != "" })
	slot := event.SlotOf("a", slots)
	var waited, plain []time.Duration
	for n := 1; b.Loop(); n++ {
		plain = append(plain, read(nil))
		ahead := event.NewToken(event.Mark{Position: event.Position{Category: "Item", Slot: slot, Seq: w.seqs[slot] + 1}, Written: true})
		answered := make(chan time.Time)
		go func() { read(ahead); answered <- time.Now() }()
		time.Sleep(5 * time.Millisecond) // it waits
		data := row(fmt.Sprintf(`{"n": %d}`, n))
		w.setIn("rows_items_v1", 1, "a", &data, false)
		committed := time.Now()
		w.announce(1, slot%partitions, w.offsets[slot%partitions]-1, w.offsets[slot%partitions], "a")
		waited = append(waited, (<-answered).Sub(committed))
	}
	slices.Sort(waited)
	slices.Sort(plain)
	b.ReportMetric(float64(waited[len(waited)/2].Microseconds()), "us-behind-commit")
	b.ReportMetric(float64(plain[len(plain)/2].Microseconds()), "us-plain-read")
}

// BenchmarkIdleFollowers reports what a client that follows changes and hears of
// none costs its server, in bytes of heap and stacks.
func BenchmarkIdleFollowers(b *testing.B) {
	r := benchmarkReplica(b, readmodel.Config{})
	const clients = 2000
	before := memory()
	var conns []net.Conn
	for range clients {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		require.NoError(b, err)
		_, err = fmt.Fprintf(conn, "GET %s/changes HTTP/1.1\r\nHost: bench\r\n\r\n", items)
		require.NoError(b, err)
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		buf := make([]byte, 1)
		_, err := io.ReadFull(conn, buf)
		require.NoError(b, err)
	}
	for b.Loop() {
		time.Sleep(100 * time.Millisecond) // the handlers' goroutines end
	}
	b.ReportMetric(float64(memory()-before)/clients, "B/client") // with the client's own end
	for _, conn := range conns {
		conn.Close()
	}
}

func memory() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
