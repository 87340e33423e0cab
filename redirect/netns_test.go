package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/redirect/nstest"
)

func mustLink(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		t.Errorf("link %s: %v", name, err)
	}
	return l
}

// veth joins two namespaces. Addresses are in CIDR form.
func veth(t testing.TB, a *nstest.NS, aName string, aAddrs []string, b *nstest.NS, bName string, bAddrs []string) {
	t.Helper()
	a.Do(func() {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(b.FD)}
		if err := netlink.LinkAdd(pair); err != nil {
			t.Errorf("veth %s-%s: %v", aName, bName, err)
		}
	})
	for _, end := range []struct {
		ns    *nstest.NS
		name  string
		addrs []string
	}{{a, aName, aAddrs}, {b, bName, bAddrs}} {
		end.ns.Do(func() {
			l := mustLink(t, end.name)
			for _, text := range end.addrs {
				addAddr(t, l, text)
			}
		})
	}
}

func addAddr(t testing.TB, l netlink.Link, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err == nil {
		a.Flags = unix.IFA_F_NODAD
		err = netlink.AddrAdd(l, a)
	}
	if err != nil {
		t.Errorf("address %s: %v", cidr, err)
	}
}

func addRoute(t testing.TB, dst, via string) {
	t.Helper()
	_, n, err := net.ParseCIDR(dst)
	if err == nil {
		err = netlink.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP(via)})
	}
	if err != nil {
		t.Errorf("route %s via %s: %v", dst, via, err)
	}
}

// The addresses of the test's little world: a pod with two interfaces and a machine behind tap0, and the world with some servers.
const (
	podV4, podV6     = "10.77.0.2", "fd77::2"
	podEth1          = "10.78.0.2"
	worldV4, worldV6 = "10.77.0.1", "fd77::1"
	worldEth1        = "10.78.0.1"
)

var serverAddrs = []string{"10.99.0.1", "10.98.0.1", "fd99::1", "fd98::1"}

// net is a pod, the world around it, and a virtual machine inside the pod.
type testNet struct {
	pod, world, vm *nstest.NS
	conns          atomic.Int64 // connections that the pod's listeners accepted
	inbound        *net.TCPListener
}

// newTestNet makes the namespaces and the listeners: an app, a proxy that reports what it was sent, and servers outside.
func newTestNet(t testing.TB, tproxy bool) *testNet {
	t.Helper()
	n := &testNet{pod: nstest.New(t), world: nstest.New(t), vm: nstest.New(t)}
	veth(t, n.pod, "eth0", []string{podV4 + "/24", podV6 + "/64"}, n.world, "pod0", []string{worldV4 + "/24", worldV6 + "/64"})
	veth(t, n.pod, "eth1", []string{podEth1 + "/24"}, n.world, "pod1", []string{worldEth1 + "/24"})
	veth(t, n.pod, "tap0", []string{"10.79.0.1/24"}, n.vm, "vm0", []string{"10.79.0.2/24"})
	n.pod.Do(func() {
		addRoute(t, "0.0.0.0/0", worldV4)
		addRoute(t, "::/0", worldV6)
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
			t.Error(err)
		}
	})
	n.vm.Do(func() { addRoute(t, "0.0.0.0/0", "10.79.0.1") })
	n.world.Do(func() {
		addRoute(t, "10.79.0.0/24", podV4)
		l := mustLink(t, "lo")
		for _, a := range serverAddrs {
			addAddr(t, l, a+map[bool]string{true: "/32", false: "/128"}[netip.MustParseAddr(a).Is4()])
		}
	})
	// "who" is answered by every listener.
	n.world.Do(func() {
		for _, port := range []int{53, 80, 443} {
			serve(t, n, port, false, func(c *net.TCPConn) string { return "world " + local4(c.LocalAddr()) })
		}
		serveUDP(t, "world", 53)
	})
	n.pod.Do(func() {
		for _, port := range []int{8080, 8081, 9000, PortMetrics, PortHealth, PortEnvoyMetrics} {
			serve(t, n, port, false, func(c *net.TCPConn) string { return "app " + local4(c.LocalAddr()) + " from " + local4(peer(c)) })
		}
		serve(t, n, PortOutbound, false, func(c *net.TCPConn) string { return "outbound " + originalDst(c) })
		n.inbound = serve(t, n, PortInbound, tproxy, func(c *net.TCPConn) string {
			if tproxy {
				return "inbound " + local4(c.LocalAddr()) + " from " + local4(peer(c))
			}
			return "inbound " + originalDst(c)
		})
		serve(t, n, PortDNS, false, func(c *net.TCPConn) string { return "dns " + originalDst(c) })
		serveUDP(t, "dns", PortDNS)
	})
	n.settle(t)
	if t.Failed() {
		t.FailNow()
	}
	return n
}

// settle waits until everybody reaches everybody. The kernel makes the route of a new IPv6 address in the background, which takes up to a
// second on a busy machine, and until then answers "no route".
func (n *testNet) settle(t testing.TB) {
	t.Helper()
	for _, c := range []struct {
		ns   *nstest.NS
		addr []string
		port string
	}{{n.pod, serverAddrs, "80"}, {n.world, []string{podV4, podV6, podEth1}, "8080"}, {n.pod, []string{podV6}, "8080"}} {
		for _, a := range c.addr {
			got := ""
			for deadline := time.Now().Add(20 * time.Second); !strings.Contains(got, a) && time.Now().Before(deadline); {
				c.ns.Do(func() { got = ask("tcp", "", net.JoinHostPort(a, c.port)) })
			}
			if !strings.Contains(got, a) {
				t.Errorf("%s does not answer before there are any rules: %s", a, got)
			}
		}
	}
}

// serve answers each connection to the port, on all addresses of both families, with one line.
func serve(t testing.TB, n *testNet, port int, transparent bool, answer func(*net.TCPConn) string) *net.TCPListener {
	t.Helper()
	l, err := listen(port, transparent)
	if err != nil {
		t.Errorf("listen on %d: %v", port, err)
		return nil
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			n.conns.Add(1)
			fmt.Fprintln(c, answer(c))
			c.Close()
		}
	}()
	return l
}

// listen is net.ListenTCP for all addresses, with IP_TRANSPARENT when asked for.
func listen(port int, transparent bool) (*net.TCPListener, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	options := []error{unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)}
	if transparent {
		options = append(options, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1), unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1))
	}
	if err := errors.Join(append(options, unix.Bind(fd, &unix.SockaddrInet6{Port: port}), unix.Listen(fd, 64))...); err != nil {
		return nil, err
	}
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

func serveUDP(t testing.TB, who string, port int) {
	t.Helper()
	for _, network := range []string{"udp4", "udp6"} {
		// One socket per address would be needed to answer from the right one on a machine with several; the servers have
		// their addresses on lo, so IP_PKTINFO is spared by listening on each.
		var addrs []string
		if who == "world" {
			for _, a := range serverAddrs {
				if netip.MustParseAddr(a).Is4() == (network == "udp4") {
					addrs = append(addrs, a)
				}
			}
		} else {
			addrs = []string{map[string]string{"udp4": "127.0.0.1", "udp6": "::1"}[network]}
		}
		for _, a := range addrs {
			c, err := net.ListenPacket(network, net.JoinHostPort(a, fmt.Sprint(port)))
			if err != nil {
				t.Errorf("listen on UDP %s port %d: %v", a, port, err)
				continue
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				buf := make([]byte, 512)
				for {
					_, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					c.WriteTo([]byte(who+"\n"), from)
				}
			}()
		}
	}
}

func peer(c *net.TCPConn) net.Addr { return c.RemoteAddr() }

// local4 writes an address without the IPv4-in-IPv6 form.
func local4(a net.Addr) string {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port()).String()
}

// originalDst is what Envoy's original_dst listener filter asks the kernel: SO_ORIGINAL_DST.
func originalDst(c *net.TCPConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	out := ""
	remote := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	raw.Control(func(fd uintptr) {
		const soOriginalDst = 80
		if remote.Is4() {
			// struct sockaddr_in is 16 bytes, as is the multicast request that the library can fetch.
			m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst)
			if err != nil {
				out = err.Error()
				return
			}
			b := m.Multiaddr
			out = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])).String()
			return
		}
		m, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, soOriginalDst)
		if err != nil {
			out = err.Error()
			return
		}
		port := m.Addr.Port>>8 | m.Addr.Port<<8
		out = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), port).String()
	})
	return out
}

// ask connects and reads the one line; a connection that nobody answers gives the reason.
func ask(network, from, addr string) string {
	d := net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial(network, addr)
	if err != nil {
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			return "refused"
		case os.IsTimeout(err):
			return "timeout"
		}
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if network == "udp" {
		fmt.Fprint(c, "who")
	}
	buf := make([]byte, 512)
	k, err := c.Read(buf)
	if err != nil && k == 0 {
		if errors.Is(err, unix.ECONNREFUSED) {
			return "refused"
		}
		return err.Error()
	}
	return string(buf[:max(k-1, 0)])
}
