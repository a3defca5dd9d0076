package devstack

import (
	"errors"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Direction is one of the two ways through a proxy.
type Direction int

// The two ways through a proxy.
const (
	ToServer Direction = iota
	ToClient
)

// Proxy is a TCP proxy on the loopback interface whose connections fail on
// demand. Faults are those of the proxy, so they concern connections that are
// open and those that come later alike. Its methods are safe for concurrent use.
//
// Both ways of a connection are read eagerly into memory and written on from
// there. So a client's bytes that are kept back survive the client.
type Proxy struct {
	t        testing.TB
	target   string
	listener net.Listener
	all      sync.WaitGroup

	mu      sync.Mutex // guards all below, and every link
	changed *sync.Cond
	links   map[*link]struct{}
	ways    [2]way
	refuse  bool
	closed  bool
}

// way is what is wrong with one direction.
type way struct {
	hold    bool
	when    func([]byte) bool // sets hold
	discard bool
	delay   time.Duration
}

// link is one connection through the proxy. conns holds the ends by the direction
// of which they are the destination.
type link struct {
	conns   [2]net.Conn
	queues  [2]queue
	severed bool // the client has been cut off
	open    int  // directions that still move
}

// queue is what was read in one direction and not yet written.
type queue struct {
	chunks []chunk
	ended  bool // nothing comes behind the chunks
}

type chunk struct {
	data []byte
	due  time.Time
}

// StartProxy starts a proxy in front of target, a host and port. It ends with
// the test.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &Proxy{t: t, target: target, listener: l, links: make(map[*link]struct{})}
	p.changed = sync.NewCond(&p.mu)
	p.all.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr returns where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL returns a database's URL with the proxy in the server's place.
func (p *Proxy) URL(server string) string {
	u, err := url.Parse(server)
	require.NoError(p.t, err)
	u.Host = p.Addr()
	return u.String()
}

// Hold keeps back the bytes of one direction until Release, and the news that
// their sender has closed. Nothing is lost; it only does not arrive.
func (p *Proxy) Hold(d Direction) { p.change(func() { p.ways[d].hold = true }) }

// HoldWhen is Hold from the first read in which when finds what it looks for, that
// read included.
func (p *Proxy) HoldWhen(d Direction, when func(read []byte) bool) {
	p.change(func() { p.ways[d].when = when })
}

// Release delivers what was held back.
func (p *Proxy) Release(d Direction) {
	p.change(func() { p.ways[d].hold, p.ways[d].when = false, nil })
}

// Delay makes bytes of one direction arrive later by d.
func (p *Proxy) Delay(way Direction, d time.Duration) { p.change(func() { p.ways[way].delay = d }) }

// Discard swallows bytes of one direction from now on: with ToClient, the server
// does what it is told and its answers are lost. What follows behind swallowed
// bytes makes no sense to its receiver, so Cut or Sever comes next.
func (p *Proxy) Discard(d Direction) { p.change(func() { p.ways[d].discard = true }) }

// Blackhole makes all connections half-open, those that come later too: they
// stand, and nothing comes through.
func (p *Proxy) Blackhole() {
	p.change(func() { p.ways[ToServer].hold, p.ways[ToClient].hold = true, true })
}

// Refuse closes every new connection at once. Cut ends the others.
func (p *Proxy) Refuse() { p.change(func() { p.refuse = true }) }

// Heal ends every fault and delivers what was held back.
func (p *Proxy) Heal() { p.change(func() { p.ways, p.refuse = [2]way{}, false }) }

// AwaitHeld waits until some connection has bytes that are kept back. The test
// fails after 30 s.
func (p *Proxy) AwaitHeld(d Direction) {
	p.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	wake := time.AfterFunc(time.Until(deadline), func() { p.change(func() {}) })
	defer wake.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.anyHeld(d) {
		if !time.Now().Before(deadline) {
			p.t.Fatalf("no bytes came that the proxy could hold back")
		}
		p.changed.Wait()
	}
}

func (p *Proxy) anyHeld(d Direction) bool {
	if !p.ways[d].hold {
		return false
	}
	for l := range p.links {
		if len(l.queues[d].chunks) > 0 {
			return true
		}
	}
	return false
}

// Cut closes all connections on both sides; what was held back is lost.
func (p *Proxy) Cut() {
	p.change(func() {
		for l := range p.links {
			p.drop(l)
		}
	})
}

// Sever cuts all connections for their clients, while what those had sent,
// though it may be held back now, still arrives at the server later: a COMMIT
// whose sender has given it up.
func (p *Proxy) Sever() {
	p.change(func() {
		for l := range p.links {
			l.severed = true
			l.queues[ToClient].chunks = nil
			l.conns[ToClient].Close()
		}
	})
}

func (p *Proxy) change(what func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	what()
	p.changed.Broadcast()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.all.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	p.mu.Lock()
	refuse := p.refuse || p.closed
	p.mu.Unlock()
	if refuse {
		client.Close()
		return
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		client.Close()
		return
	}
	l := &link{open: 2}
	l.conns[ToServer], l.conns[ToClient] = server, client
	p.change(func() {
		p.links[l] = struct{}{}
		if p.closed {
			p.drop(l)
		}
	})
	for _, d := range []Direction{ToServer, ToClient} {
		p.all.Go(func() { p.read(l, d) })
		p.all.Go(func() { p.write(l, d) })
	}
}

// read moves bytes from their source into the queue.
func (p *Proxy) read(l *link, d Direction) {
	source := l.conns[1-d]
	buf := make([]byte, 64<<10)
	for {
		n, err := source.Read(buf)
		p.change(func() { p.enqueue(l, d, buf[:n], err != nil) })
		if err != nil {
			return
		}
	}
}

func (p *Proxy) enqueue(l *link, d Direction, read []byte, ended bool) {
	way, q := &p.ways[d], &l.queues[d]
	if way.when != nil && way.when(read) {
		way.hold, way.when = true, nil
	}
	if len(read) > 0 && !way.discard && !(l.severed && d == ToClient) {
		q.chunks = append(q.chunks, chunk{append([]byte(nil), read...), time.Now().Add(way.delay)})
	}
	q.ended = q.ended || ended
}

// write moves bytes from the queue to their destination, and then the news that
// there are no more.
func (p *Proxy) write(l *link, d Direction) {
	destination := l.conns[d]
	for {
		data, more := p.next(l, d)
		if !more {
			break
		}
		if _, err := destination.Write(data); err != nil {
			p.change(func() { p.unwritable(l, d) })
			break
		}
	}
	if half, ok := destination.(*net.TCPConn); ok {
		half.CloseWrite() // it may be closed already
	}
	p.change(func() { p.finish(l, d) })
}

// next waits for bytes that may pass.
func (p *Proxy) next(l *link, d Direction) (data []byte, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := &l.queues[d]
	for {
		if _, open := p.links[l]; !open {
			return nil, false
		}
		switch {
		case p.ways[d].hold:
			p.changed.Wait()
		case len(q.chunks) == 0 && q.ended:
			return nil, false
		case len(q.chunks) == 0:
			p.changed.Wait()
		case time.Until(q.chunks[0].due) > 0:
			wake := time.AfterFunc(time.Until(q.chunks[0].due), func() { p.change(func() {}) })
			p.changed.Wait()
			wake.Stop()
		default:
			data = q.chunks[0].data
			q.chunks = q.chunks[1:]
			return data, true
		}
	}
}

// unwritable is called when the destination has gone. A server that has gone ends
// the connection; a client that has gone may have bytes on their way.
func (p *Proxy) unwritable(l *link, d Direction) {
	if d == ToServer {
		p.drop(l)
	}
}

// finish ends the connection once neither direction moves, or the server is done.
func (p *Proxy) finish(l *link, d Direction) {
	l.open--
	if l.open == 0 || (d == ToClient && !l.severed && l.queues[ToClient].ended) {
		p.drop(l)
	}
}

func (p *Proxy) drop(l *link) {
	delete(p.links, l)
	for _, conn := range l.conns {
		if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			p.t.Logf("closing a proxied connection: %v", err)
		}
	}
}

func (p *Proxy) close() {
	p.listener.Close()
	p.change(func() { p.closed = true })
	p.Cut()
	p.all.Wait()
}
