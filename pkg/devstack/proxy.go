package devstack

import (
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Proxy is a TCP proxy whose connections fail on demand. Its methods are safe
// for concurrent use.
type Proxy struct {
	target   string
	listener net.Listener

	mu    sync.Mutex
	links map[*link]struct{}
	hold  [2]bool // by direction: bytes are kept back
	held  [2]int  // how many connections have bytes that are kept back
	more  *sync.Cond
	all   sync.WaitGroup
}

// Direction is one of the two ways through a proxy.
type Direction int

// The two ways through a proxy.
const (
	ToServer Direction = iota
	ToClient
)

// link is one connection through the proxy.
type link struct {
	client, server net.Conn
	// severed: the client's side is cut, but what it had sent still arrives.
	severed bool
}

// StartProxy starts a proxy in front of target, a host and port. It ends with
// the test.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &Proxy{target: target, listener: l, links: make(map[*link]struct{})}
	p.more = sync.NewCond(&p.mu)
	p.all.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr returns where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{client: client, server: server}
		p.mu.Lock()
		p.links[l] = struct{}{}
		p.mu.Unlock()
		p.all.Go(func() { p.copy(l, client, server, ToServer) })
		p.all.Go(func() { p.copy(l, server, client, ToClient) })
	}
}

func (p *Proxy) copy(l *link, from, to net.Conn, way Direction) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		for p.hold[way] && p.isOpen(l) && n > 0 {
			p.held[way]++
			p.more.Broadcast()
			p.more.Wait()
			p.held[way]--
		}
		severed := l.severed
		p.mu.Unlock()
		if n > 0 && !(severed && way == ToClient) {
			to.Write(buf[:n])
		}
		if err != nil {
			if way == ToClient || !severed {
				p.drop(l)
			} else {
				to.Close() // the client's last bytes have been delivered
			}
			return
		}
	}
}

func (p *Proxy) isOpen(l *link) bool {
	_, ok := p.links[l]
	return ok
}

func (p *Proxy) drop(l *link) {
	p.mu.Lock()
	delete(p.links, l)
	p.more.Broadcast()
	p.mu.Unlock()
	l.client.Close()
	l.server.Close()
}

// Hold keeps back the bytes of one direction until Release: nothing is lost, it
// only does not arrive.
func (p *Proxy) Hold(way Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold[way] = true
}

// AwaitHeld waits until some connection has bytes that are kept back.
func (p *Proxy) AwaitHeld(way Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.held[way] == 0 {
		p.more.Wait()
	}
}

// Release delivers what was held back.
func (p *Proxy) Release(way Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold[way] = false
	p.more.Broadcast()
}

// Cut closes all connections on both sides.
func (p *Proxy) Cut() {
	for _, l := range p.open() {
		p.drop(l)
	}
}

// Sever cuts all connections for their clients, while what those had sent,
// though it may be held back now, still arrives at the server later: a COMMIT
// whose sender has given it up.
func (p *Proxy) Sever() {
	for _, l := range p.open() {
		p.mu.Lock()
		l.severed = true
		p.mu.Unlock()
		l.client.Close()
	}
}

func (p *Proxy) open() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	var links []*link
	for l := range p.links {
		links = append(links, l)
	}
	return links
}

func (p *Proxy) close() {
	p.listener.Close()
	p.Cut()
	p.all.Wait()
}
