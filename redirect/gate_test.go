package redirect

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect/nstest"
)

// gated runs f with the rules of a pod that the start gate holds back, in each way in which they are written.
func gated(t *testing.T, f func(t *testing.T, n *testNet, s Spec)) {
	kit.Root(t)
	for _, b := range backends(t) {
		for _, mode := range []Mode{Redirect, TProxy} {
			t.Run(b.Name()+"/"+string(mode), func(t *testing.T) {
				n := newTestNet(t, mode == TProxy)
				s := Default()
				s.Mode, s.Gate, s.ExcludeInboundPorts = mode, PortHealth, []uint16{9001}
				var err error
				if n.pod.Do(func() { err = b.Apply(s) }); err != nil {
					t.Fatal(err)
				}
				f(t, n, s)
			})
		}
	}
}

// proofs are the addresses that kubelet may ask.
var proofs = []netip.AddrPort{
	netip.AddrPortFrom(netip.MustParseAddr(podV4), PortProof),
	netip.AddrPortFrom(netip.MustParseAddr(podV6), PortProof),
	netip.AddrPortFrom(netip.MustParseAddr(podEth1), PortProof),
}

func TestWithTheGateNobodyIsRefusedUntilTheProxyListens(t *testing.T) {
	gated(t, func(t *testing.T, n *testNet, s Spec) {
		n.inbound.Close()
		var waiting []caller
		for _, to := range proofs {
			waiting = append(waiting, call(t, n.world, to))
		}
		for _, c := range waiting {
			// The kernel has asked, and has asked again because nobody said anything.
			c.until(t, "asked twice", func(i *unix.TCPInfo) bool { return i.Retransmits > 0 })
			if state := c.info(t).State; state != tcpSynSent {
				t.Errorf("%s: state %d of the connection before anybody listens, want that it still asks", c.to, state)
			}
		}
		n.pod.Do(func() {
			if got := ask("tcp", "", netip.AddrPortFrom(netip.MustParseAddr(podV4), PortProof).String()); got != "refused" {
				t.Errorf("a process of the pod itself: %s, want refused", got)
			}
		})
		echo(t, listenIn(t, n.pod, PortInbound, s.Mode == TProxy), "proxy")
		for _, c := range waiting {
			c.talk(t, "proxy")
		}
	})
}

func TestWithTheGateWhoListensInThePodIsAsked(t *testing.T) {
	gated(t, func(t *testing.T, n *testNet, s Spec) {
		n.inbound.Close()
		echo(t, listenIn(t, n.pod, PortInbound, s.Mode == TProxy), "proxy")
		var before, during, after []*conversation
		for _, to := range proofs {
			before = append(before, call(t, n.world, to).talk(t, "proxy"))
		}
		agent := listenIn(t, n.pod, PortProof, false)
		echo(t, agent, "agent")
		for _, to := range proofs {
			during = append(during, call(t, n.world, to).talk(t, "agent"))
		}
		for _, c := range slices.Concat(before, during) {
			c.goOn(t)
		}
		agent.Close()
		for _, to := range proofs {
			after = append(after, call(t, n.world, to).talk(t, "proxy"))
		}
		for _, c := range slices.Concat(before, during, after) {
			c.goOn(t)
		}
		// The agent may listen again, and be waited for again.
		echo(t, listenIn(t, n.pod, PortProof, false), "agent")
		for _, to := range proofs {
			call(t, n.world, to).talk(t, "agent")
		}
		for _, c := range slices.Concat(before, during, after) {
			c.goOn(t)
		}
	})
}

func TestWithTheGateAListenerHasOnlyItsOwnAddresses(t *testing.T) {
	gated(t, func(t *testing.T, n *testNet, s Spec) {
		n.inbound.Close()
		echo(t, listenIn(t, n.pod, PortInbound, s.Mode == TProxy), "proxy")
		for _, bound := range []string{"0.0.0.0", podV4, podV6, "127.0.0.1"} {
			at := netip.MustParseAddr(bound)
			var l net.Listener
			var err error
			n.pod.Do(func() {
				l, err = net.Listen(map[bool]string{true: "tcp4", false: "tcp6"}[at.Is4()], netip.AddrPortFrom(at, PortProof).String())
			})
			if err != nil {
				t.Fatal(err)
			}
			echo(t, l, "agent")
			for _, to := range proofs {
				want := "proxy"
				if at == to.Addr() || at.IsUnspecified() && to.Addr().Is4() {
					want = "agent"
				}
				call(t, n.world, to).talk(t, want)
			}
			l.Close()
		}
	})
}

func TestWithTheGateOtherPortsAreRefusedAsEver(t *testing.T) {
	gated(t, func(t *testing.T, n *testNet, s Spec) {
		for _, to := range proofs {
			closed := netip.AddrPortFrom(to.Addr(), s.ExcludeInboundPorts[0])
			call(t, n.world, closed).refused(t)
		}
	})
}

// Who gives up a connection that it had says so.
func TestWithTheGateAnEstablishedConnectionIsAbortedAtOnce(t *testing.T) {
	gated(t, func(t *testing.T, n *testNet, s Spec) {
		n.inbound.Close()
		for _, c := range []struct {
			port        int
			transparent bool
		}{{PortInbound, s.Mode == TProxy}, {PortProof, false}} {
			l := listenIn(t, n.pod, c.port, c.transparent)
			go func() {
				for {
					conn, err := l.AcceptTCP()
					if err != nil {
						return
					}
					// It first reads, so that the caller has surely acknowledged the connection.
					conn.Read(make([]byte, 1))
					conn.SetLinger(0)
					conn.Close()
				}
			}()
			for _, to := range proofs {
				conn := call(t, n.world, to).connected(t)
				if _, err := fmt.Fprint(conn, "x"); err != nil {
					t.Error(err)
				}
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Fatalf("%s by way of port %d: %v, want that the connection is reset", to, c.port, err)
				}
			}
			l.Close()
		}
	})
}

// A process of the pod that calls PortProof elsewhere, and does not want the connection any more when it is accepted, lets the other side know.
func TestWithTheGateThePodsOwnResetsLeaveIt(t *testing.T) {
	gated(t, func(t *testing.T, n *testNet, s Spec) {
		listenIn(t, n.world, PortProof, false)
		const port = 5000
		raw := func(ns *nstest.NS) (fd int) {
			var err error
			// As the proxy, whose connections are not captured.
			if ns.As(ProxyUID, ProxyGID, func() { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP) }); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(fd) })
			return fd
		}
		from, at := raw(n.pod), raw(n.world)
		// The pod's kernel knows nothing of this connection, and resets it when it is accepted.
		const syn, rst = 2, 4
		if err := unix.Sendto(from, segment(podV4, worldV4, port, PortProof, syn), 0, &unix.SockaddrInet4{Addr: toArray4(netip.MustParseAddr(worldV4))}); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptTimeval(at, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 256)
		for {
			k, _, err := unix.Recvfrom(at, buf, 0)
			if err != nil || k < 40 {
				t.Fatalf("no reset: %v", os.NewSyscallError("recvfrom", err))
			}
			if tcp := buf[20:]; binary.BigEndian.Uint16(tcp) == port && tcp[13]&rst != 0 {
				return
			}
		}
	})
}

func TestIptablesVerifySeesThatTheGateIsBroken(t *testing.T) {
	kit.Root(t)
	kit.Netfilter(t)
	ip := newIPTables()
	for mode, table := range map[Mode]string{Redirect: "nat", TProxy: "mangle"} {
		s := Default()
		s.Mode, s.Gate = mode, PortHealth
		nstest.New(t).Do(func() {
			if err := ip.Apply(s); err != nil {
				t.Error(err)
				return
			}
			position := slices.IndexFunc(inboundRules(s), func(r rule) bool { return strings.HasPrefix(r.comment, "start gate") }) + 1
			for _, c := range []struct{ delete, want string }{
				{fmt.Sprintf("*%s\n-D WEFT_INBOUND %d\nCOMMIT\n", table, position), "iptables table " + table + " chain WEFT_INBOUND: missing rule: WEFT_INBOUND -p tcp -m tcp --dport 15099 -m addrtype --dst-type LOCAL -m socket --nowildcard"},
				{"*mangle\n-D WEFT_REFUSAL 1\nCOMMIT\n", "iptables table mangle chain WEFT_REFUSAL: missing rule: WEFT_REFUSAL ! -o lo -p tcp -m tcp --tcp-flags RST RST"},
				{"*mangle\n-D OUTPUT -j WEFT_REFUSAL\nCOMMIT\n", "iptables table mangle: missing rule: OUTPUT -j WEFT_REFUSAL"},
			} {
				if _, err := run([]byte(c.delete), ip.command(family4, "restore"), "--noflush"); err != nil {
					t.Error(err)
				}
				if drift, err := ip.Verify(s); err != nil || len(drift) != 1 || !strings.HasPrefix(drift[0], c.want) {
					t.Errorf("%s: verify: %v, %q, want %q", mode, err, drift, c.want)
				}
				if err := ip.Apply(s); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// inboundRules are those of chainInbound.
func inboundRules(s Spec) []rule {
	for _, c := range compile(s) {
		if c.name == chainInbound {
			return c.rules
		}
	}
	return nil
}

// caller is a connection that is being opened; the kernel goes on with it while the test looks.
type caller struct {
	fd int
	to netip.AddrPort
}

const tcpSynSent = 2 // the kernel's TCP_SYN_SENT

// call begins a connection from a namespace.
func call(t *testing.T, from *nstest.NS, to netip.AddrPort) caller {
	t.Helper()
	family, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: toArray4(to.Addr()), Port: int(to.Port())})
	if to.Addr().Is6() {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	}
	c := caller{to: to}
	var err error
	from.Do(func() {
		if c.fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err == nil {
			err = unix.Connect(c.fd, addr)
		}
	})
	if err != nil && err != unix.EINPROGRESS {
		t.Fatalf("connect to %s: %v", to, err)
	}
	t.Cleanup(func() { unix.Close(c.fd) })
	return c
}

func (c caller) info(t *testing.T) *unix.TCPInfo {
	t.Helper()
	i, err := unix.GetsockoptTCPInfo(c.fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatalf("%s: %v", c.to, err)
	}
	return i
}

func (c caller) until(t *testing.T, what string, ok func(*unix.TCPInfo) bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(c.info(t)); time.Sleep(10 * time.Millisecond) {
		if c.info(t).State != tcpSynSent || time.Now().After(deadline) {
			t.Fatalf("%s: not %s, state %d", c.to, what, c.info(t).State)
		}
	}
}

// outcome waits for the connection, or for what became of it.
func (c caller) outcome(t *testing.T) error {
	t.Helper()
	err := error(unix.EINTR)
	for n := 0; err == unix.EINTR; {
		if n, err = unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}, 30_000); err == nil && n == 0 {
			t.Fatalf("%s: neither connected nor refused after 30 s", c.to)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	return err
}

func (c caller) refused(t *testing.T) {
	t.Helper()
	if err := c.outcome(t); err != unix.ECONNREFUSED {
		t.Errorf("%s: %v, want that it is refused", c.to, err)
	}
}

// connected is the connection once it is there.
func (c caller) connected(t *testing.T) net.Conn {
	t.Helper()
	if err := c.outcome(t); err != nil {
		t.Fatalf("%s: %v", c.to, err)
	}
	// The file and the connection that is made from it are copies; both are closed with the test.
	dup, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(dup), "connection")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	return conn
}

// conversation is a connection with somebody who says who it is.
type conversation struct {
	conn  net.Conn
	lines *bufio.Reader
	to    netip.AddrPort
	who   string
	said  int
}

// talk waits for the connection and expects that who has it.
func (c caller) talk(t *testing.T, who string) *conversation {
	t.Helper()
	conn := c.connected(t)
	conv := &conversation{conn: conn, lines: bufio.NewReader(conn), to: c.to, who: who}
	conv.goOn(t)
	return conv
}

// goOn says something and expects the answer.
func (c *conversation) goOn(t *testing.T) {
	t.Helper()
	c.said++
	if _, err := fmt.Fprintln(c.conn, c.said); err != nil {
		t.Errorf("%s: %v", c.to, err)
	}
	want := fmt.Sprintf("%s: %d\n", c.who, c.said)
	if got, err := c.lines.ReadString('\n'); got != want {
		t.Fatalf("%s: answer %q (%v), want %q", c.to, got, err, want)
	}
}

// listenIn is listen in a namespace.
func listenIn(t *testing.T, ns *nstest.NS, port int, transparent bool) *net.TCPListener {
	t.Helper()
	var l *net.TCPListener
	var err error
	if ns.Do(func() { l, err = listen(port, transparent) }); err != nil {
		t.Fatalf("listen on %d: %v", port, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// echo repeats each line that it is sent, with who it is.
func echo(t *testing.T, l net.Listener, who string) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintf(c, "%s: %s\n", who, lines.Text())
				}
			}()
		}
	}()
}
