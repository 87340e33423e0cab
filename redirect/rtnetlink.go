package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Besides rules, redirection needs ::6/128 on lo (IPv6 has no 127.0.0.0/8 whose every address is local, so the source address of
// Envoy's connections to the app must be given to lo), and for TPROXY a routing rule per family that delivers marked packets locally.

// lo is the index of the loopback interface, in every network namespace.
const lo = 1

// route is one thing in the kernel's routing that a Spec needs, with the messages that make it, remove it and find it.
type route struct {
	name   string // as the ip command writes it
	add    netlink.Message
	remove netlink.Message
	list   netlink.Message
	found  func(reply []byte) bool
	ipv6   bool
}

// routes is what a Spec needs; Remove passes the one that needs all.
func routes(s Spec) []route {
	var out []route
	if s.Mode != Redirect && s.Mode != TProxy {
		return nil
	}
	if s.IPv6 {
		out = append(out, loopGuardAddress())
	}
	if s.Mode == TProxy && s.IPv4 {
		out = append(out, markRule(unix.AF_INET), markRoute(unix.AF_INET))
	}
	if s.Mode == TProxy && s.IPv6 {
		out = append(out, markRule(unix.AF_INET6), markRoute(unix.AF_INET6))
	}
	return out
}

// everyRoute is what any Spec may have left behind.
func everyRoute() []route { return routes(Spec{Mode: TProxy, IPv4: true, IPv6: true}) }

func attrs(list ...netlink.Attribute) []byte {
	b, err := netlink.MarshalAttributes(list)
	if err != nil {
		return nil // only attributes of 64 KiB and more are refused
	}
	return b
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func message(kind uint16, flags netlink.HeaderFlags, header []byte, list ...netlink.Attribute) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   append(header, attrs(list...)...),
	}
}

const create = netlink.Acknowledge | netlink.Create | netlink.Excl

// loopGuardAddress: ip -6 addr add ::6/128 dev lo nodad.
func loopGuardAddress() route {
	a := loopGuard6.Addr().As16()
	header := []byte{unix.AF_INET6, 128, unix.IFA_F_NODAD, unix.RT_SCOPE_HOST, lo, 0, 0, 0} // struct ifaddrmsg
	binary.NativeEndian.PutUint32(header[4:], lo)
	address := []netlink.Attribute{{Type: unix.IFA_LOCAL, Data: a[:]}, {Type: unix.IFA_ADDRESS, Data: a[:]}}
	return route{
		name:   fmt.Sprintf("address %s on lo", loopGuard6),
		add:    message(unix.RTM_NEWADDR, create, header, address...),
		remove: message(unix.RTM_DELADDR, netlink.Acknowledge, header, address...),
		list:   message(unix.RTM_GETADDR, netlink.Dump, []byte{unix.AF_INET6, 0, 0, 0, 0, 0, 0, 0}),
		found: func(b []byte) bool {
			return len(b) >= 8 && b[1] == 128 && binary.NativeEndian.Uint32(b[4:]) == lo && attribute(b[8:], unix.IFA_ADDRESS) == string(a[:])
		},
		ipv6: true,
	}
}

// markRule: ip rule add fwmark 0x539 lookup 133.
func markRule(family byte) route {
	// struct fib_rule_hdr: family, lengths, tos, table, reserved, action, flags.
	header := []byte{family, 0, 0, 0, tableTProxy, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0}
	what := []netlink.Attribute{{Type: unix.FRA_FWMARK, Data: u32(markTProxy)}, {Type: unix.FRA_FWMASK, Data: u32(allMarkBits)}, {Type: unix.FRA_TABLE, Data: u32(tableTProxy)}}
	return route{
		name:   fmt.Sprintf("ip%s rule: fwmark %#x lookup %d", dash6(family), markTProxy, tableTProxy),
		add:    message(unix.RTM_NEWRULE, create, header, what...),
		remove: message(unix.RTM_DELRULE, netlink.Acknowledge, header, what...),
		list:   message(unix.RTM_GETRULE, netlink.Dump, []byte{family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
		found: func(b []byte) bool {
			return len(b) >= 12 && b[0] == family && attribute(b[12:], unix.FRA_FWMARK) == string(u32(markTProxy)) &&
				attribute(b[12:], unix.FRA_TABLE) == string(u32(tableTProxy))
		},
		ipv6: family == unix.AF_INET6,
	}
}

// markRoute: ip route add local default dev lo table 133.
func markRoute(family byte) route {
	// struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
	header := []byte{family, 0, 0, 0, tableTProxy, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0}
	what := []netlink.Attribute{{Type: unix.RTA_OIF, Data: u32(lo)}, {Type: unix.RTA_TABLE, Data: u32(tableTProxy)}}
	return route{
		name:   fmt.Sprintf("ip%s route: local default dev lo table %d", dash6(family), tableTProxy),
		add:    message(unix.RTM_NEWROUTE, create, header, what...),
		remove: message(unix.RTM_DELROUTE, netlink.Acknowledge, header, what...),
		list:   message(unix.RTM_GETROUTE, netlink.Dump, []byte{family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
		found: func(b []byte) bool {
			return len(b) >= 12 && b[0] == family && b[1] == 0 && b[7] == unix.RTN_LOCAL && attribute(b[12:], unix.RTA_TABLE) == string(u32(tableTProxy)) &&
				attribute(b[12:], unix.RTA_OIF) == string(u32(lo))
		},
		ipv6: family == unix.AF_INET6,
	}
}

func dash6(family byte) string {
	if family == unix.AF_INET6 {
		return " -6"
	}
	return ""
}

// attribute gives the bytes of one attribute, or "".
func attribute(b []byte, kind uint16) string {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return ""
	}
	for ad.Next() {
		if ad.Type() == kind {
			return string(ad.Bytes())
		}
	}
	return ""
}

func dialRoute() (*nlSocket, error) { return dialNetlink(unix.NETLINK_ROUTE) }

// addRoutes makes what is wanted.
func addRoutes(wanted []route) error {
	if len(wanted) == 0 {
		return nil
	}
	c, err := dialRoute()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, r := range wanted {
		_, err := c.Execute(r.add)
		if err == nil || errors.Is(err, unix.EEXIST) || r.ipv6 && noIPv6(c, err) {
			continue
		}
		return fmt.Errorf("add %s: %w", r.name, err)
	}
	return nil
}

// removeOtherRoutes takes away what a former Spec may have left and this one does not want.
func removeOtherRoutes(wanted []route) error {
	c, err := dialRoute()
	if err != nil {
		return err
	}
	defer c.Close()
	return removeRoutes(c, slices.DeleteFunc(everyRoute(), func(r route) bool {
		return slices.ContainsFunc(wanted, func(w route) bool { return w.name == r.name })
	}))
}

func removeRoutes(c *nlSocket, list []route) error {
	var errs []error
	for _, r := range list {
		_, err := c.Execute(r.remove)
		switch {
		case err == nil, errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH),
			errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		default:
			errs = append(errs, fmt.Errorf("remove %s: %w", r.name, err))
		}
	}
	return errors.Join(errs...)
}

// noIPv6 says that an error is no loss, because this namespace has no IPv6 address besides lo's own, so no IPv6 traffic to capture.
func noIPv6(c *nlSocket, err error) bool {
	if err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.ENODEV) {
		return false
	}
	replies, err := c.Execute(loopGuardAddress().list)
	if err != nil {
		return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
	}
	for _, m := range replies {
		if len(m.Data) < 8 || m.Data[0] != unix.AF_INET6 {
			continue
		}
		a, ok := netip.AddrFromSlice([]byte(attribute(m.Data[8:], unix.IFA_ADDRESS)))
		if ok && !a.IsLoopback() && !a.IsLinkLocalUnicast() && a != loopGuard6.Addr() {
			return false
		}
	}
	return true
}

// verifyRoutes names what is missing.
func verifyRoutes(wanted []route) ([]string, error) {
	c, err := dialRoute()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var drift []string
	for _, r := range wanted {
		replies, err := c.Execute(r.list)
		if err != nil {
			if r.ipv6 && noIPv6(c, err) {
				continue
			}
			return nil, fmt.Errorf("look for %s: %w", r.name, err)
		}
		found := false
		for _, m := range replies {
			found = found || r.found(m.Data)
		}
		if !found && !(r.ipv6 && noIPv6(c, nil)) {
			drift = append(drift, fmt.Sprintf("missing %s", r.name))
		}
	}
	return drift, nil
}
