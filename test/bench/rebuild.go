package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/event"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/registry"
	"github.com/refoldhq/refold/pkg/strictjson"
)

// benchRebuild measures `rebuild run`, the whole process from start to exit,
// index, verification and promotion included, from real Kafka and from the event
// table, beside a bare loop that consumes, folds, copies and keys the same data.
func benchRebuild(ctx context.Context, b *bench) error {
	n := b.events(5_000_000)
	h := &rebuildHistory{events: n, perStream: 10}
	for _, c := range []struct{ what, yaml, name, goal string }{
		{"rows of one stream, 10 events each", ownedYAML, "bench_users", ">= 600k/s; bare / 2; <= 512 MiB"},
		{"cross-stream rows", sharedYAML, "bench_days", ">= 300k/s"},
	} {
		if err := b.rebuildOne(ctx, h, c.what, c.yaml, c.name, c.goal); err != nil {
			return fmt.Errorf("rebuilding %s: %w", c.name, err)
		}
	}
	return nil
}

func (b *bench) rebuildOne(ctx context.Context, h *rebuildHistory, what, yaml, name, goal string) error {
	schemas, err := contracts(yaml)
	if err != nil {
		return err
	}
	defer os.RemoveAll(schemas)
	p, err := b.platform(ctx, "rebuild_"+name)
	if err != nil {
		return err
	}
	defer p.close()
	p.schemas = schemas
	if err := p.start(ctx, "writer"); err != nil { // it makes the category and the topic
		return err
	}
	p.end("writer")
	if err := h.write(ctx, b, p); err != nil {
		return fmt.Errorf("writing the history: %w", err)
	}
	bare, err := b.bareRebuild(ctx, p, h.events)
	if err != nil {
		return err
	}
	for _, run := range []struct {
		what string
		goal string
		args []string
	}{
		{"from Kafka", goal, nil},
		{"from Kafka, with a version to differ from", goal, nil},
		{"from the event table", ">= 300k/s", []string{"--source=eventstore"}},
	} {
		took, u, err := p.rebuild(ctx, name, run.args...)
		if err != nil {
			return err
		}
		b.report.line("rebuild: "+what+", "+run.what, fmt.Sprintf("%s, %.2f us CPU each, %d MiB at most", thousands(rate(h.events, took)), float64(u.cpu.Microseconds())/float64(h.events), u.hwm>>20), run.goal,
			"bare consume, fold, COPY and key: "+thousands(rate(h.events, bare)), bare.Seconds()/took.Seconds())
	}
	return b.promoteTime(ctx, p, name)
}

// rebuild runs one rebuild as a process of its own.
func (p *platform) rebuild(ctx context.Context, name string, args ...string) (took time.Duration, u usage, err error) {
	bin, err := binaries()
	if err != nil {
		return 0, u, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "rebuild"), append([]string{"run", name, "--admin-addr", freeAddr()}, args...)...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+p.url, "KAFKA_BOOTSTRAP_SERVERS="+strings.Join(p.bench.kafka.Brokers(), ","), "REFOLD_PREFIX="+p.prefix, "REFOLD_SCHEMAS="+p.schemas)
	log, err := os.CreateTemp("", "bench-rebuild")
	if err != nil {
		return 0, u, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, u, err
	}
	ended, seen := make(chan struct{}), make(chan int64)
	go func() { seen <- peak(cmd.Process.Pid, ended) }()
	err = cmd.Wait()
	took = time.Since(start)
	close(ended)
	u.hwm = <-seen
	if err != nil {
		return took, u, fmt.Errorf("rebuild run %s, see %s: %w", name, log.Name(), err)
	}
	u.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return took, u, os.Remove(log.Name())
}

// peak follows the most memory of a process until it has ended, in bytes. (The
// maxrss of a process that has ended is at least that of its parent when it started,
// see getrusage(2).)
func peak(pid int, ended <-chan struct{}) (most int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return most
		case <-tick.C:
			if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
				most = max(most, kilobytes(string(status), "VmHWM:"))
			}
		}
	}
}

// promoteTime measures rolling back and forth, which is the same flip.
func (b *bench) promoteTime(ctx context.Context, p *platform, name string) error {
	bin, err := binaries()
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, p.url)
	if err != nil {
		return err
	}
	defer pool.Close()
	var times latencies
	for range 10 {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "rebuild"), "rollback", name)
		cmd.Env = append(os.Environ(), "DATABASE_URL="+p.url, "KAFKA_BOOTSTRAP_SERVERS="+strings.Join(p.bench.kafka.Brokers(), ","), "REFOLD_SCHEMAS="+p.schemas)
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("rolling back: %w: %s", err, out)
		}
		times = append(times, time.Since(start))
	}
	b.report.line("roll back and promote again, the process included", times.String(), "< 50 ms", "", 0)
	return nil
}

// users is the category User of a platform, registered.
type users struct {
	registry  *registry.Registry
	contracts *avro.Contracts
	contract  *avro.CategoryContract
	ids       map[string]int // of schemas, by type
}

func (p *platform) users(ctx context.Context, pool *pgxpool.Pool) (*users, error) {
	u := &users{registry: registry.New(pool)}
	var err error
	if u.contracts, err = avro.LoadContracts(os.DirFS(p.schemas)); err != nil {
		return nil, err
	}
	ids, err := u.registry.RegisterContracts(ctx, u.contracts, func(category string) string { return kafka.TopicName(p.prefix, category) })
	if err != nil {
		return nil, err
	}
	u.contract, _ = u.contracts.Category("User")
	u.ids = ids["User"]
	return u, nil
}

// encode returns an event's value as it lies in the log.
func (u *users) encode(typ, body string) ([]byte, error) {
	t, known := u.contract.Type(typ)
	if !known {
		return nil, fmt.Errorf("the contracts have no %s", typ)
	}
	return t.Newest().EncodeJSON(avro.AppendFrame(nil, u.ids[typ]), strictjson.NewReader([]byte(body)))
}

// rebuildHistory is a history that is written to the table and the topic
// directly, as appends and the relay would leave it.
type rebuildHistory struct{ events, perStream int }

func (h *rebuildHistory) write(ctx context.Context, b *bench, p *platform) error {
	pool, err := pgxpool.New(ctx, p.url)
	if err != nil {
		return err
	}
	defer pool.Close()
	users, err := p.users(ctx, pool)
	if err != nil {
		return err
	}
	topic, contract := p.prefix+".user", users.contract
	client, err := b.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(900_000), kgo.MaxBufferedRecords(100_000))
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := kafka.EnsureTopic(ctx, kadm.NewClient(client), topic, contract.Partitions); err != nil {
		return err
	}
	login, err := users.encode("UserLoggedIn", `{}`)
	if err != nil {
		return err
	}
	seqs, last := make([]int64, contract.Slots), make([]event.ID, contract.Slots)
	failed := make(chan error, 1)
	next := func(i int) (*event.Event, error) {
		stream := fmt.Sprintf("user-%d", i%(h.events/h.perStream))
		e := &event.Event{ID: event.NewID(), Category: "User", Stream: stream, Version: int64(i/(h.events/h.perStream)) + 1, Slot: event.SlotOf(stream, contract.Slots),
			Type: "UserLoggedIn", Value: login, Time: event.Time(1_700_000_000_000_000 + int64(i)*100_000), Recorded: event.Time(1_700_000_000_000_000 + int64(i)*100_000)}
		if e.Version == 1 {
			e.Type = "UserCreated"
			body := fmt.Sprintf(`{"id":%q,"email":"%s@example.com","isActive":true}`, stream, stream)
			if e.Value, err = users.encode("UserCreated", body); err != nil {
				return nil, err
			}
		}
		seqs[e.Slot]++
		e.Seq, e.PrevID = seqs[e.Slot], last[e.Slot]
		last[e.Slot] = e.ID
		client.Produce(ctx, kafka.ToRecord(e, topic, int32(event.PartitionOf(e.Slot, contract.Partitions))), func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
		return e, nil
	}
	var category int16
	if err := pool.QueryRow(ctx, `select id from refold.category where name = 'User'`).Scan(&category); err != nil {
		return err
	}
	i := 0
	if _, err := pool.CopyFrom(ctx, pgx.Identifier{"refold", "event"}, []string{"category", "slot", "seq", "version", "id", "time", "recorded", "stream", "type", "value"}, pgx.CopyFromFunc(func() ([]any, error) {
		if i == h.events {
			return nil, nil
		}
		e, err := next(i)
		if err != nil {
			return nil, err
		}
		i++
		return []any{category, int16(e.Slot), e.Seq, e.Version, [16]byte(e.ID), e.Time.Std(), e.Recorded.Std(), e.Stream, e.Type, e.Value}, nil
	})); err != nil {
		return err
	}
	if err := client.Flush(ctx); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	default:
	}
	_, err = pool.Exec(ctx, `vacuum (analyze) refold.event`)
	return err
}

// bareRebuild consumes the topic, counts events by key, and copies a row for each
// key into a table that then gets a primary key: no order, no checks, no digest.
func (b *bench) bareRebuild(ctx context.Context, p *platform, n int) (time.Duration, error) {
	conn, err := pgx.Connect(ctx, p.url)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `create schema if not exists bench; drop table if exists bench.bare; create table bench.bare (key text collate "C", data jsonb)`); err != nil {
		return 0, err
	}
	consumer, err := b.client(kgo.ConsumeTopics(p.prefix+".user"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return 0, err
	}
	defer consumer.Close()
	start := time.Now()
	counts := make(map[string]*int)
	for seen := 0; seen < n; {
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return 0, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			seen++
			if count := counts[string(r.Key)]; count != nil {
				*count++
				return
			}
			one := 1
			counts[string(r.Key)] = &one
		})
	}
	rows := &bareRows{out: []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")}
	for key, count := range counts {
		rows.add(key, fmt.Appendf(nil, `{"id":%q,"email":"%s@example.com","logins":%d}`, key, key, *count))
	}
	rows.out = append(rows.out, 0xff, 0xff)
	if _, err := conn.PgConn().CopyFrom(ctx, rows, `copy bench.bare from stdin (format binary)`); err != nil {
		return 0, err
	}
	_, err = conn.Exec(ctx, `alter table bench.bare add primary key (key)`)
	took := time.Since(start)
	if _, dropErr := conn.Exec(ctx, `drop table bench.bare`); dropErr != nil {
		err = errors.Join(err, dropErr)
	}
	return took, err
}

// bareRows is a binary COPY of keys and JSON.
type bareRows struct{ out []byte }

func (r *bareRows) add(key string, data []byte) {
	r.out = binary.BigEndian.AppendUint16(r.out, 2)
	r.out = append(binary.BigEndian.AppendUint32(r.out, uint32(len(key))), key...)
	r.out = append(binary.BigEndian.AppendUint32(r.out, uint32(len(data)+1)), 1)
	r.out = append(r.out, data...)
}

func (r *bareRows) Read(p []byte) (int, error) {
	if len(r.out) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}
