package devstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// Ports are taken from below the range from which kernels give ports to outgoing
// connections (32768 and up on Linux): a server that is stopped for a while must
// find its own port free again.
const firstPort, lastPort = 15_000, 32_000

// given holds the ports that were given out: a port stays free until its server
// starts, and must not go to two of them.
var given sync.Map

// PortOr returns a port if nobody listens on it at the loopback interface, else one
// that is free. 0 has no preference.
func PortOr(port int) (int, error) {
	if port != 0 {
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return freePort()
}

// FreeAddr returns an address of the loopback interface that nobody listens on and
// that no other call in this process has returned.
func FreeAddr() (string, error) {
	port, err := freePort()
	return fmt.Sprintf("127.0.0.1:%d", port), err
}

// freePort returns a port of the loopback interface that nobody listens on, and
// never the same one twice.
func freePort() (int, error) {
	var last error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			last = err
			continue
		}
		if err := l.Close(); err != nil {
			return 0, err
		}
		if _, twice := given.LoadOrStore(port, true); !twice {
			return port, nil
		}
	}
	return 0, errors.Join(errors.New("looking for a free port: none in 100 tries"), last)
}
