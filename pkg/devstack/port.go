package devstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports are taken from below the range from which kernels give ports to outgoing
// connections (32768 and up on Linux): a server that is stopped for a while must
// find its own port free again.
const firstPort, lastPort = 15_000, 32_000

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

// freePort returns a port of the loopback interface that nobody listens on.
func freePort() (int, error) {
	var last error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			last = err
			continue
		}
		return port, l.Close()
	}
	return 0, errors.Join(errors.New("looking for a free port: none in 100 tries"), last)
}
