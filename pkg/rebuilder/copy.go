package rebuilder

import (
	"context"
	"fmt"
	"io"
)

// copy writes the rows of the pass.
func (l *loader) copy(ctx context.Context) error {
	if !l.opened && l.table != "" {
		if _, err := l.conn.Exec(ctx, `begin`); err != nil {
			return fmt.Errorf("beginning the load: %w", err)
		}
		l.opened = true
	}
	rows := &rowReader{loader: l, keys: make([]string, 0, len(l.rows)), out: append(make([]byte, 0, 128<<10), copyHeader...)}
	for key, row := range l.rows {
		if row.Exists() {
			rows.keys = append(rows.keys, key)
		}
	}
	if l.table == "" {
		_, err := io.Copy(io.Discard, rows)
		return err
	}
	sql := `copy ` + l.table + ` (key, data, state) from stdin (format binary)`
	if l.job.plan.Shared() {
		sql = `copy ` + l.table + ` (category, partition, key, data, state) from stdin (format binary)`
		rows.prefix, rows.extra = copyPrefix(l.part.category.Name, l.part.partition), 2
	}
	if _, err := l.conn.PgConn().CopyFrom(ctx, rows, sql); err != nil {
		return fmt.Errorf("copying rows: %w", err)
	}
	return nil
}

// rowReader makes the stream of a binary COPY of rows as it is read.
type rowReader struct {
	loader *loader
	keys   []string
	prefix []byte
	extra  int
	data   []byte
	state  []byte
	out    []byte
	at     int
	ended  bool
}

func (r *rowReader) Read(p []byte) (n int, err error) {
	if r.at == len(r.out) {
		if r.ended {
			return 0, io.EOF
		}
		r.out, r.at = r.out[:0], 0
	}
	for len(r.out)-r.at < len(p) && len(r.keys) > 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	if len(r.keys) == 0 && !r.ended {
		r.out, r.ended = append(r.out, copyTrailer...), true
	}
	n = copy(p, r.out[r.at:])
	r.at += n
	return n, nil
}

func (r *rowReader) next() error {
	l, key := r.loader, r.keys[0]
	r.keys = r.keys[1:]
	row := l.rows[key]
	r.data, r.state = row.AppendData(r.data[:0]), row.AppendState(r.state[:0])
	state := r.state
	if l.job.faults.blindDigest {
		state = nil
	}
	sum, err := l.hasher.hash(key, r.data, state)
	if err != nil {
		return fmt.Errorf("hashing the row %q: %w", key, err)
	}
	l.digest += sum
	l.written++
	r.out = appendCopyRow(r.out, r.prefix, 3+r.extra, key, r.data, r.state)
	return nil
}
