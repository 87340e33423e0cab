package sandbox

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// onThread runs f on an operating system thread that no other goroutine uses
// meanwhile: f may change the thread's network namespace. The thread gets its
// own one back afterwards; one that does not is never used again.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// inNetNS runs f inside a network namespace. What f starts there (sockets, processes) stays there.
func inNetNS(path string, f func() error) error {
	return onThread(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", path, err)
		}
		return f()
	})
}

// createNode makes the node's network namespace and mounts it at path.
func createNode(path string, a addresses) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		if err := configureNode(a); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting the network namespace at %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// configureNode gives the node its addresses and routes. A veth pair with both
// ends inside gives it a carrier without any interface on the host.
func configureNode(a addresses) error {
	sysctls := map[string]string{
		"net/ipv4/ip_forward":                 "1",
		"net/ipv4/conf/all/rp_filter":         "0",
		"net/ipv4/conf/default/rp_filter":     "0",
		"net/ipv6/conf/all/forwarding":        "1",
		"net/ipv6/conf/all/accept_dad":        "0", // nobody else is on these links: duplicate address detection is a second of waiting
		"net/ipv6/conf/default/accept_dad":    "0",
		"net/ipv6/conf/default/dad_transmits": "0",
		"net/ipv6/conf/all/disable_ipv6":      "0",
		"net/ipv6/conf/default/disable_ipv6":  "0",
	}
	for name, value := range sysctls {
		err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6 has none of its settings
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "node0"}, PeerName: "node1"}); err != nil {
		return fmt.Errorf("making the node's interface: %w (does this kernel have veth?)", err)
	}
	links := map[string]netlink.Link{}
	for _, name := range []string{"lo", "node0", "node1"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		links[name] = l
	}
	add := func(link string, p netip.Prefix) error {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if !p.Addr().Is4() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(links[link], addr); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
		return nil
	}
	for _, p := range a.Node {
		if err := add("node0", p); err != nil {
			return err
		}
	}
	for _, ip := range a.DNS {
		if err := add("lo", netip.PrefixFrom(ip, ip.BitLen())); err != nil {
			return err
		}
	}
	for _, p := range append(append([]netip.Prefix(nil), a.Services...), a.LBs...) {
		// Packets to a service address need a route before the DNAT rules see them.
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: links["node0"].Attrs().Index, Dst: ipNet(p), Src: nodeIP(a, p.Addr().Is4())}); err != nil {
			return fmt.Errorf("route to %s: %w", p, err)
		}
	}
	for _, p := range a.Node {
		all := "0.0.0.0/0"
		if !p.Addr().Is4() {
			all = "::/0"
		}
		// A sandbox has no way out. Saying so at once is better than letting connections time out.
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(all)), Type: unix.RTN_UNREACHABLE, Priority: 4096}); err != nil {
			return fmt.Errorf("unreachable route: %w", err)
		}
	}
	return nil
}

func nodeIP(a addresses, v4 bool) net.IP {
	for _, p := range a.Node {
		if p.Addr().Is4() == v4 {
			return p.Addr().AsSlice()
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// destroyNode unmounts the namespace; the kernel removes it when the last process in it is gone.
func destroyNode(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not, or no longer, a mount point
		}
		if err != nil {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// nsInode identifies a namespace; two paths to one namespace have the same.
func nsInode(path string) (uint64, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0, false
	}
	return st.Ino, true
}

// mountedNS is nsInode for a path that must be a namespace other than that of the machine's first process.
func mountedNS(path string) (uint64, bool) {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
		return 0, false
	}
	ino, ok := nsInode(path)
	machine, _ := nsInode("/proc/1/ns/net")
	return ino, ok && ino != machine
}

// processesIn finds the processes whose network namespace is one of these.
func processesIn(inodes map[uint64]bool) []int {
	var out []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscanf(e.Name(), "%d", &pid); err != nil || pid == os.Getpid() || pid == os.Getppid() {
			continue
		}
		if ino, ok := nsInode(filepath.Join("/proc", e.Name(), "ns/net")); ok && inodes[ino] {
			out = append(out, pid)
		}
	}
	return out
}
