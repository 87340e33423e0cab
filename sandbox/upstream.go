package sandbox

import (
	"context"
	"net"
	"os"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/sandbox/dns"
)

// hostResolver asks the host's name servers, through sockets in the host's
// network namespace. It returns nil when none of them answers, so that a
// sandbox on a machine without a network says "no such name" at once.
func hostResolver(hostNS *os.File) dns.Upstream {
	if hostNS == nil {
		return nil
	}
	conf, err := mdns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil || len(conf.Servers) == 0 {
		return nil
	}
	exchange := func(ctx context.Context, q *mdns.Msg) (r *mdns.Msg, err error) {
		for _, server := range conf.Servers {
			addr := net.JoinHostPort(server, conf.Port)
			for _, network := range []string{"udp", "tcp"} {
				if r, err = exchangeVia(ctx, hostNS, network, addr, q); err == nil && !r.Truncated {
					return r, nil
				}
			}
		}
		return r, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	probe := new(mdns.Msg).SetQuestion(".", mdns.TypeNS)
	if r, err := exchange(ctx, probe); err != nil || r.Rcode == mdns.RcodeRefused {
		return nil
	}
	return exchange
}

func exchangeVia(ctx context.Context, ns *os.File, network, addr string, q *mdns.Msg) (*mdns.Msg, error) {
	var conn net.Conn
	err := inNetNSFile(ns, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if d, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(d); err != nil {
			return nil, err
		}
	}
	c := &mdns.Conn{Conn: conn, UDPSize: mdns.DefaultMsgSize}
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	return c.ReadMsg()
}

func inNetNSFile(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}
