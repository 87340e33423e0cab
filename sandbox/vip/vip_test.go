package vip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// net builds a router namespace with two hosts behind it, as pods are behind a node.
type world struct {
	router, a, b netns.NsHandle
}

var (
	addrA = netip.MustParseAddr("10.1.0.2")
	addrB = netip.MustParseAddr("10.1.1.2")
	vip   = netip.MustParseAddr("10.96.0.50")

	addrA6 = netip.MustParseAddr("fd00:1::2")
	addrB6 = netip.MustParseAddr("fd00:1:1::2")
	vip6   = netip.MustParseAddr("fd00:96::50")
)

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	must(t, err)
	w := &world{}
	t.Cleanup(func() {
		must(t, netns.Set(home))
		for _, h := range []netns.NsHandle{w.router, w.a, w.b, home} {
			h.Close()
		}
		runtime.UnlockOSThread()
	})
	w.a, err = netns.New()
	must(t, err)
	w.b, err = netns.New()
	must(t, err)
	w.router, err = netns.New() // the thread stays here
	must(t, err)
	for _, f := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		must(t, os.WriteFile(f, []byte("1"), 0o644))
	}
	up(t, "lo")
	for i, host := range []netns.NsHandle{w.a, w.b} {
		name := fmt.Sprintf("host%d", i)
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(host)}))
		address(t, name, fmt.Sprintf("10.1.%d.1/24", i))
		address(t, name, fmt.Sprintf("fd00:1:%d::1/64", i))
		up(t, name)
		w.in(t, host, func() {
			up(t, "lo")
			address(t, "eth0", fmt.Sprintf("10.1.%d.2/24", i))
			address(t, "eth0", fmt.Sprintf("fd00:1:%d::2/64", i))
			up(t, "eth0")
			for _, gw := range []string{fmt.Sprintf("10.1.%d.1", i), fmt.Sprintf("fd00:1:%d::1", i)} {
				must(t, netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}))
			}
		})
	}
	// VIPs need a route, or the router's own packets fail before DNAT.
	for _, cidr := range []string{"10.96.0.0/16", "fd00:96::/112"} {
		link, err := netlink.LinkByName("host0")
		must(t, err)
		_, dst, _ := net.ParseCIDR(cidr)
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}))
	}
	return w
}

func (w *world) in(t *testing.T, ns netns.NsHandle, f func()) {
	t.Helper()
	must(t, netns.Set(ns))
	defer func() { must(t, netns.Set(w.router)) }()
	f()
}

// serve answers every connection in ns with its name and the client's address.
func (w *world) serve(t *testing.T, ns netns.NsHandle, name, addr string) {
	t.Helper()
	w.in(t, ns, func() {
		l, err := net.Listen("tcp", addr)
		must(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s %s", name, c.RemoteAddr())
				c.Close()
			}
		}()
	})
}

func (w *world) ask(t *testing.T, ns netns.NsHandle, addr netip.AddrPort) (answer string, err error) {
	t.Helper()
	w.in(t, ns, func() {
		// net.Dial could race several addresses on other threads, which are in another namespace: a single address does not.
		var c net.Conn
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr.String()); err != nil {
			return
		}
		defer c.Close()
		var b []byte
		b, err = io.ReadAll(c)
		answer = string(b)
	})
	return answer, err
}

func TestConnectionsToAVIPReachEveryEndpointFromPodsAndFromTheNode(t *testing.T) {
	for _, c := range []struct {
		name       string
		vip, a, b  netip.Addr
		everything netip.Prefix
	}{
		{"IPv4", vip, addrA, addrB, netip.MustParsePrefix("10.96.0.0/16")},
		{"IPv6", vip6, addrA6, addrB6, netip.MustParsePrefix("fd00:96::/112")},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			listenA, listenB := netip.AddrPortFrom(c.a, 8080), netip.AddrPortFrom(c.b, 9090)
			eventually(t, func() error { return w.try(t, w.a, listenA.String()) })
			eventually(t, func() error { return w.try(t, w.b, listenB.String()) })
			w.serve(t, w.a, "a", listenA.String())
			w.serve(t, w.b, "b", listenB.String())
			target := netip.AddrPortFrom(c.vip, 80)
			must(t, Apply(Rules{VIPs: []VIP{{TCP, target, []netip.AddrPort{listenA, listenB}}}, Ranges: []netip.Prefix{c.everything}}))
			for who, ns := range map[string]netns.NsHandle{"pod a": w.a, "pod b": w.b, "node": w.router} {
				got := map[string]int{}
				for range 40 {
					s, err := w.ask(t, ns, target)
					if err != nil {
						t.Fatalf("%s: %v", who, err)
					}
					got[s[:1]]++
				}
				if got["a"] == 0 || got["b"] == 0 {
					t.Errorf("%s: 40 connections reached %v, want both endpoints", who, got)
				}
			}
		})
	}
}

func TestAPodReachesItselfThroughItsVIP(t *testing.T) {
	w := newWorld(t)
	ep := netip.AddrPortFrom(addrA, 8080)
	w.serve(t, w.a, "a", ep.String())
	target := netip.AddrPortFrom(vip, 80)
	must(t, Apply(Rules{VIPs: []VIP{{TCP, target, []netip.AddrPort{ep}}}}))
	s, err := w.ask(t, w.a, target)
	must(t, err)
	if want := "a 10.1.0.1:"; !strings.HasPrefix(s, want) {
		t.Errorf("answer %q, want one seen from the router (%s): without masquerade the pod answers itself", s, want)
	}
}

func TestAServiceWithoutEndpointsRefusesAtOnce(t *testing.T) {
	w := newWorld(t)
	target := netip.AddrPortFrom(vip, 80)
	must(t, Apply(Rules{VIPs: []VIP{{TCP, target, nil}}, Ranges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}))
	for who, ns := range map[string]netns.NsHandle{"pod": w.a, "node": w.router} {
		start := time.Now()
		_, err := w.ask(t, ns, target)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want connection refused", who, err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("%s: refused only after %v", who, d)
		}
	}
}

func TestApplyingAgainReplacesEndpointsAndRemoveLeavesNothing(t *testing.T) {
	w := newWorld(t)
	epA, epB := netip.AddrPortFrom(addrA, 8080), netip.AddrPortFrom(addrB, 8080)
	w.serve(t, w.a, "a", epA.String())
	w.serve(t, w.b, "b", epB.String())
	target := netip.AddrPortFrom(vip, 80)
	for _, ep := range []netip.AddrPort{epA, epB, epA} {
		must(t, Apply(Rules{VIPs: []VIP{{TCP, target, []netip.AddrPort{ep}}}}))
		s, err := w.ask(t, w.router, target)
		must(t, err)
		if want := map[netip.AddrPort]string{epA: "a", epB: "b"}[ep]; s[:1] != want {
			t.Errorf("answered by %q, want %q", s[:1], want)
		}
	}
	must(t, Remove())
	if _, err := w.ask(t, w.router, target); err == nil {
		t.Error("the VIP still works after Remove")
	}
}

func (w *world) try(t *testing.T, ns netns.NsHandle, addr string) (err error) {
	w.in(t, ns, func() {
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			l.Close()
		}
	})
	return err
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func up(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(l))
}

func address(t *testing.T, name, cidr string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	must(t, netlink.AddrAdd(l, a))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
