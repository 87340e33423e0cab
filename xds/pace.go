package xds

import (
	"fmt"
	"net"
	"runtime"
	"strconv"
	"time"

	"google.golang.org/grpc/credentials"
)

// pace keeps a crowd of new streams from standing in the way of those that are there: after a restart thousands come at once, each with
// a handshake, a token, and a list of all that it has. As many of them work at a time as the processors can; the others
// wait, and take no part in the competition for processors.
type pace chan struct{}

func newPace() pace { return make(pace, 2*runtime.GOMAXPROCS(0)) }

// pacePatience is how long one waits at most. A place may be taken by a peer that does not read, and that must hold up nobody.
const pacePatience = 100 * time.Millisecond

// do works when it is its turn.
func (p pace) do(work func()) {
	select {
	case p <- struct{}{}:
	default:
		patience := time.NewTimer(pacePatience)
		defer patience.Stop()
		select {
		case p <- struct{}{}:
		case <-patience.C:
			work()
			return
		}
	}
	defer func() { <-p }()
	work()
}

// pacedTLS is TLS whose handshakes wait for their turn.
type pacedTLS struct {
	credentials.TransportCredentials
	pace pace
}

func (c pacedTLS) ServerHandshake(raw net.Conn) (conn net.Conn, info credentials.AuthInfo, err error) {
	c.pace.do(func() { conn, info, err = c.TransportCredentials.ServerHandshake(raw) })
	return conn, info, err
}

func (c pacedTLS) Clone() credentials.TransportCredentials {
	return pacedTLS{c.TransportCredentials.Clone(), c.pace}
}

// paced does a newcomer's work when it is its turn, and anybody else's at once.
func (s *session) paced(work func()) {
	if s.newcomer.Load() {
		s.server.newcomers.do(work)
		return
	}
	work()
}

// newcomerTime is how long a stream is new at most.
const newcomerTime = 10 * time.Second

// FromEnvironment takes PushThrottle from Istio's variable PILOT_PUSH_THROTTLE, a number; 0 or nothing leaves it to the processors. getenv
// is usually os.Getenv. The error names the variable.
func (c *Config) FromEnvironment(getenv func(string) string) error {
	const name = "PILOT_PUSH_THROTTLE"
	text := getenv(name)
	if text == "" {
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return fmt.Errorf("%s=%q: want a number of proxies that are told of a change at a time, such as 100", name, text)
	}
	c.PushThrottle = n
	return nil
}
