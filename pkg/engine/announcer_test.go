package engine

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/refoldhq/refold/pkg/devstack"
	"github.com/refoldhq/refold/pkg/readmodel"
)

func TestCommitsAreAnnouncedThoughTheSessionBreaks(t *testing.T) {
	pool := devstack.MigratedDatabase(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	url := pool.Config().ConnString()
	ear, err := pgx.Connect(ctx, url)
	require.NoError(t, err)
	defer ear.Close(ctx)
	_, err = ear.Exec(ctx, `listen `+readmodel.Channel)
	require.NoError(t, err)

	n := newAnnouncer(url, slog.New(slog.DiscardHandler))
	commit := func(partition int, from int64, keys ...uint32) {
		n.announce(readmodel.Announcement{Projection: "p", Version: 1, Category: "User", Generation: 1, Partition: partition, From: from, To: from + 1, Seqs: []int64{from + 1}, Keys: keys})
	}
	commit(0, 0, 1) // before there is a session: joined
	commit(0, 1, 2, 3)
	commit(1, 0, 4)
	running, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); n.run(running) }()
	heard := map[int]readmodel.Announcement{}
	hear := func() readmodel.Announcement {
		notification, err := ear.WaitForNotification(ctx)
		require.NoError(t, err)
		a, err := readmodel.ParseAnnouncement(notification.Payload)
		require.NoError(t, err)
		heard[a.Partition] = a
		return a
	}
	hear()
	hear()
	require.Equal(t, readmodel.Announcement{Projection: "p", Version: 1, Category: "User", Generation: 1, From: 0, To: 2, Seqs: []int64{2}, Keys: []uint32{1, 2, 3}}, heard[0])
	require.Equal(t, []uint32{4}, heard[1].Keys)

	_, err = pool.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'refold-projector-announce' and datname = current_database()`)
	require.NoError(t, err)
	commit(0, 2, 5)
	for heard[0].To != 3 { // what a broken session could not send is sent by the next
		hear()
	}
	require.Contains(t, heard[0].Keys, uint32(5))
	stop()
	<-done
}
