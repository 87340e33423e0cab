package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/e2e/kit"
)

// Envoy's original_src filter opens the connection to the app from the client's address, with mark 0x539. The app's answers to that foreign
// address must come back to Envoy.
func TestWithTPROXYTheAppSeesTheClientsAddress(t *testing.T) {
	kit.Root(t)
	for _, b := range backends(t) {
		t.Run(b.Name(), func(t *testing.T) {
			n := newTestNet(t, true)
			s := Default()
			s.Mode = TProxy
			n.pod.Do(func() {
				if err := b.Apply(s); err != nil {
					t.Error(err)
				}
			})
			for _, c := range []struct{ client, pod string }{{worldV4, podV4}, {worldV6, podV6}, {"10.99.0.1", podV4}} {
				n.pod.As(0, ProxyGID, func() {
					got, err := askFrom(netip.MustParseAddr(c.client), netip.MustParseAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.pod), 8080).String()))
					want := fmt.Sprintf("app %s from %s", netip.AddrPortFrom(netip.MustParseAddr(c.pod), 8080), c.client)
					if err != nil || !sameOutcome(got, want) {
						t.Errorf("%s through the proxy: %q, %v, want %q", c.client, got, err, want)
					}
				})
			}
		})
	}
}

// A proxy that is being restarted does not listen; meanwhile its app must not be reached without it.
func TestWithTPROXYNobodyGetsInWhileTheProxyDoesNotListen(t *testing.T) {
	kit.Root(t)
	for _, b := range backends(t) {
		for name, ports := range map[string]Ports{"all ports": AllPorts(), "one port": OnlyPorts(8080)} {
			t.Run(b.Name()+"/"+name, func(t *testing.T) {
				n := newTestNet(t, true)
				s := Default()
				s.Mode, s.IncludeInboundPorts = TProxy, ports
				var err error
				if n.pod.Do(func() { err = b.Apply(s) }); err != nil {
					t.Fatal(err)
				}
				n.inbound.Close()
				var waiting []caller
				for _, to := range []string{podV4, podV6} {
					waiting = append(waiting, call(t, n.world, netip.AddrPortFrom(netip.MustParseAddr(to), 8080)))
				}
				for _, c := range waiting {
					c.until(t, "asked twice", func(i *unix.TCPInfo) bool { return i.Retransmits > 0 })
				}
				echo(t, listenIn(t, n.pod, PortInbound, true), "proxy")
				for _, c := range waiting {
					c.talk(t, "proxy")
				}
			})
		}
	}
}

// askFrom is ask from an address that is not of this machine.
func askFrom(client netip.Addr, to netip.AddrPort) (string, error) {
	family, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	var from, dst unix.Sockaddr = &unix.SockaddrInet4{Addr: toArray4(client)}, &unix.SockaddrInet4{Addr: toArray4(to.Addr()), Port: int(to.Port())}
	if client.Is6() {
		family, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		from, dst = &unix.SockaddrInet6{Addr: client.As16()}, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	timeout := &unix.Timeval{Sec: 2}
	if err := errors.Join(
		unix.SetsockoptInt(fd, level, option, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, markTProxy),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, timeout),
		unix.Bind(fd, from), unix.Connect(fd, dst)); err != nil {
		return "", err
	}
	buf := make([]byte, 512)
	k, err := unix.Read(fd, buf)
	return strings.TrimSpace(string(buf[:max(k, 0)])), err
}

func toArray4(a netip.Addr) (out [4]byte) {
	if a.Is4() {
		out = a.As4()
	}
	return out
}

// An unsolicited SYN-ACK is invalid to connection tracking; the kernel answers it with a reset, unless it is dropped first. A SYN to a closed port, sent
// after it, always gets its reset, so the first reset to arrive tells which it was.
func TestInvalidPacketsAreDroppedOnlyWhenAskedFor(t *testing.T) {
	kit.Root(t)
	for _, b := range backends(t) {
		for _, dropped := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/drop=%v", b.Name(), dropped), func(t *testing.T) {
				n := newTestNet(t, false)
				s := Default()
				s.DropInvalid = dropped
				s.IncludeInboundPorts = OnlyPorts()
				n.pod.Do(func() {
					if err := b.Apply(s); err != nil {
						t.Error(err)
					}
				})
				const invalidPort, closedPort = 4001, 4002
				var first int
				n.world.Do(func() {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
					if err != nil {
						t.Error(err)
						return
					}
					defer unix.Close(fd)
					const syn, synAck, rst = 2, 0x12, 4
					for _, p := range []struct {
						port  uint16
						flags byte
					}{{invalidPort, synAck}, {closedPort, syn}} {
						if err := unix.Sendto(fd, segment(worldV4, podV4, 5000, p.port, p.flags), 0, &unix.SockaddrInet4{Addr: toArray4(netip.MustParseAddr(podV4))}); err != nil {
							t.Error(err)
						}
					}
					if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
						t.Error(err)
					}
					buf := make([]byte, 256)
					for deadline := time.Now().Add(5 * time.Second); first == 0 && time.Now().Before(deadline); {
						k, _, err := unix.Recvfrom(fd, buf, 0)
						if err != nil || k < 40 {
							t.Errorf("no answer at all: %v", os.NewSyscallError("recvfrom", err))
							return
						}
						if tcp := buf[20:]; tcp[13]&rst != 0 && binary.BigEndian.Uint16(tcp[2:]) == 5000 {
							first = int(binary.BigEndian.Uint16(tcp))
						}
					}
				})
				want := map[bool]int{false: invalidPort, true: closedPort}[dropped]
				if first != want {
					t.Errorf("the first reset came from port %d, want %d", first, want)
				}
			})
		}
	}
}

// segment is a TCP segment without payload.
func segment(from, to string, sport, dport uint16, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint32(b[4:], 1)
	binary.BigEndian.PutUint32(b[8:], 1)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 1024)
	src, dst := toArray4(netip.MustParseAddr(from)), toArray4(netip.MustParseAddr(to))
	pseudo := append(append(append([]byte{}, src[:]...), dst[:]...), 0, unix.IPPROTO_TCP, 0, byte(len(b)))
	sum := uint32(0)
	for _, part := range [][]byte{pseudo, b} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return b
}
