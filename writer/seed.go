package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/refoldhq/refold/pkg/service"
)

// seeding makes traffic for a platform that somebody looks at: accounts that are
// created, activated, used, locked and deleted, through the API like anybody
// else's commands.
type seeding struct {
	base   string
	client *http.Client
	log    *slog.Logger
	random *rand.Rand
	run    string // makes streams and addresses of each start others
	made   int
}

const (
	seedAtOnce = 200                   // accounts at the start
	seedPause  = 50 * time.Millisecond // between commands from then on
)

// newSeeding returns the traffic, or says why there cannot be any.
func (c *devCommand) newSeeding(s *service.Settings) (*seeding, error) {
	switch {
	case s.Schemas != "":
		return nil, errors.New("--seed=demo is for the contracts that are compiled in: leave --schemas out")
	case c.Auth == "oidc" || c.TLSCertFile != "":
		return nil, errors.New("--seed=demo sends commands without a token and without TLS: leave --auth=oidc and --tls-cert-file out")
	}
	host, port, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return nil, fmt.Errorf("reading --addr: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	now := time.Now()
	return &seeding{base: "http://" + net.JoinHostPort(host, port), client: &http.Client{Timeout: 10 * time.Second}, log: s.Logger(),
		random: rand.New(rand.NewPCG(uint64(now.UnixNano()), 0)), run: now.UTC().Format("0102150405")}, nil
}

// work sends commands until ctx ends.
func (g *seeding) work(ctx context.Context) {
	for range seedAtOnce {
		if !g.create(ctx) {
			return
		}
	}
	g.log.Info("demo accounts are there, and go on being used", "accounts", g.made)
	tick := time.NewTicker(seedPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			g.step(ctx)
		}
	}
}

// step sends one command. Many are refused, as in life: a locked account logs in
// no more.
func (g *seeding) step(ctx context.Context) {
	id := g.random.IntN(g.made) + 1
	switch n := g.random.IntN(100); {
	case n < 10:
		g.create(ctx)
	case n < 15:
		g.send(ctx, id, "changeEmail", map[string]any{"email": g.email(id, fmt.Sprint("new", g.random.IntN(1000)))})
	case n < 17:
		g.send(ctx, id, "delete", nil)
	case n < 30:
		g.send(ctx, id, "activate", nil)
	default:
		g.send(ctx, id, "logIn", map[string]any{"succeeded": g.random.IntN(4) > 0})
	}
}

func (g *seeding) create(ctx context.Context) bool {
	g.made++
	email := g.email(g.made, "user")
	ok := g.send(ctx, g.made, "create", map[string]any{"email": email, "name": fmt.Sprint("User ", g.made)}) &&
		g.send(ctx, g.made, "verifyEmail", map[string]any{"email": email})
	return ok && g.send(ctx, g.made, "activate", nil)
}

func (g *seeding) email(id int, name string) string {
	return fmt.Sprintf("%s-%s-%d@example.com", name, g.run, id)
}

// send tells whether the command was answered: a refusal is an answer.
func (g *seeding) send(ctx context.Context, id int, command string, body map[string]any) bool {
	if body == nil {
		body = map[string]any{}
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return false
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("%s/v1/commands/User/demo-%s-%d/%s", g.base, g.run, id, command), bytes.NewReader(raw))
	if err != nil {
		return false
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Refold-Actor", "demo")
	answer, err := g.client.Do(r)
	if err != nil {
		if ctx.Err() == nil {
			g.log.Warn("sending a demo command", "command", command, "err", err)
		}
		return false
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
	if err != nil || answer.StatusCode >= 500 || answer.StatusCode == http.StatusNotFound && command == "create" {
		g.log.Warn("sending a demo command", "command", command, "status", answer.StatusCode, "answer", string(text), "err", err)
		return false
	}
	return true
}
