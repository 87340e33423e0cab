package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink"
)

// connect gives the node an address and a default route in its own network namespace. A veth pair with both ends inside has a
// carrier and needs nothing on the machine; the route is for the node's own connections to service addresses, which
// kube-proxy's rules turn away before they could get lost there.
func connect(dualStack bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "node0"}, PeerName: "node0p"}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(pair)); err != nil {
		return err
	}
	peer, err := netlink.LinkByName("node0p")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetUp(peer), netlink.LinkSetUp(pair)); err != nil {
		return err
	}
	if err := address(pair, NodeIP+"/24", "0.0.0.0/0"); err != nil {
		return err
	}
	if dualStack {
		if err := address(pair, nodeIP6+"/64", "::/0"); err != nil {
			return err
		}
	}
	for key, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
		// Pods on one bridge reach service addresses only when bridged packets pass the rules.
		"net/bridge/bridge-nf-call-iptables": "1", "net/bridge/bridge-nf-call-ip6tables": "1",
	} {
		// A kernel without IPv6 or bridge filtering lacks the keys.
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func address(link netlink.Link, address, routed string) error {
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	a.Flags = 0x02 // IFA_F_NODAD: an address that nobody else can have is usable at once
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("address %s: %w", address, err)
	}
	dst, err := netlink.ParseIPNet(routed)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
		return fmt.Errorf("route to %s: %w", routed, err)
	}
	return nil
}
