package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftWrite replaces our table by t in one transaction: a packet meets either all the old rules or all the new ones. No chains means no table.
// replaced is true when there was, or may have been, a table before.
func nftWrite(t nftTable) (replaced bool, err error) {
	s, err := dialNetlink(unix.NETLINK_NETFILTER)
	if err != nil {
		return false, err
	}
	defer s.Close()
	steps, err := nftSteps(t)
	if err != nil {
		return false, err
	}
	table := attr(unix.NFTA_TABLE_NAME, text(nftTableName))
	create := nftStep("create table inet "+nftTableName, unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, table)
	// First as if there were no table yet, which is so for every new pod. Only when there is one is it deleted: the kernel frees what was
	// deleted after a grace period, and closing the socket waits for that, 10 to 20 ms.
	if len(steps) > 0 {
		if err = s.transact(append([]step{create}, steps...)); err == nil {
			return false, nil
		}
	}
	if len(steps) == 0 {
		if _, err := s.Execute(nftMessage(unix.NFT_MSG_GETTABLE, netlink.Acknowledge, table)); errors.Is(err, unix.ENOENT) {
			return true, nil // gone already
		}
	}
	if len(steps) == 0 || errors.Is(err, unix.EEXIST) {
		// Adding first makes the deletion succeed whether or not the table is there.
		replace := []step{
			nftStep("add table", unix.NFT_MSG_NEWTABLE, netlink.Create, table),
			nftStep("delete the former table", unix.NFT_MSG_DELTABLE, 0, table),
		}
		if len(steps) > 0 {
			replace = append(append(replace, create), steps...)
		}
		replaced, err = true, s.transact(replace)
	}
	if err != nil {
		return replaced, fmt.Errorf("nftables: %w", err)
	}
	return replaced, nil
}

// nftSteps fills the table. Chains come before rules, as rules name chains.
func nftSteps(t nftTable) ([]step, error) {
	var steps []step
	for _, c := range t.chains {
		steps = append(steps, nftStep("add chain "+c.name, unix.NFT_MSG_NEWCHAIN, netlink.Create, nftChainAttributes(c)...))
	}
	for _, c := range t.chains {
		for _, r := range c.rules {
			what := fmt.Sprintf("add to chain %s the rule %q", c.name, t.rule(r))
			var exprs []netlink.Attribute
			for _, e := range r.exprs {
				if l, ok := e.(*expr.Lookup); ok {
					steps = append(steps, nftSetSteps(what, l, t.sets[setName(l.SetName, l.SetID)])...)
				}
				b, err := nftEncodeExpr(e)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", what, err)
				}
				exprs = append(exprs, attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b))
			}
			steps = append(steps, nftStep(what, unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append,
				attr(unix.NFTA_RULE_TABLE, text(nftTableName)),
				attr(unix.NFTA_RULE_CHAIN, text(c.name)),
				nested(unix.NFTA_RULE_EXPRESSIONS, exprs...),
				attr(unix.NFTA_RULE_USERDATA, userdata.AppendString(nil, userdata.TypeComment, r.comment))))
		}
	}
	return steps, nil
}

// nftEncodeExpr: the library writes the direction of a connection in four bytes. The kernel wants one, takes the first of them, and complains in its log.
func nftEncodeExpr(e expr.Any) ([]byte, error) {
	ct, ok := e.(*expr.Ct)
	if !ok || ct.Key != expr.CtKeyPROTODST {
		return expr.Marshal(unix.NFPROTO_INET, e)
	}
	return attrs(attr(unix.NFTA_EXPR_NAME, text("ct")), nested(unix.NFTA_EXPR_DATA,
		attr(unix.NFTA_CT_DREG, be32(ct.Register)),
		attr(unix.NFTA_CT_KEY, be32(uint32(ct.Key))),
		attr(unix.NFTA_CT_DIRECTION, []byte{byte(ct.Direction)}))), nil
}

func nftChainAttributes(c nftChain) []netlink.Attribute {
	list := []netlink.Attribute{attr(unix.NFTA_CHAIN_TABLE, text(nftTableName)), attr(unix.NFTA_CHAIN_NAME, text(c.name))}
	if c.kind == "" {
		return list
	}
	const accept = 1
	return append(list,
		nested(unix.NFTA_CHAIN_HOOK, attr(unix.NFTA_HOOK_HOOKNUM, be32(c.hook)), attr(unix.NFTA_HOOK_PRIORITY, be32(uint32(c.priority)))),
		attr(unix.NFTA_CHAIN_POLICY, be32(accept)),
		attr(unix.NFTA_CHAIN_TYPE, text(c.kind)))
}

// nftSetSteps adds the anonymous set that a lookup uses. A netlink attribute holds 64 KiB, so long lists are added in pieces.
func nftSetSteps(what string, l *expr.Lookup, set nftSet) []step {
	flags := uint32(unix.NFT_SET_ANONYMOUS | unix.NFT_SET_CONSTANT)
	if set.interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	// The byte order of the keys, for whoever prints the set.
	order := uint32(2)
	if set.key.Name == nftables.TypeUID.Name || set.key.Name == nftables.TypeGID.Name {
		order = 1 // the machine's own
	}
	steps := []step{nftStep(what, unix.NFT_MSG_NEWSET, netlink.Create,
		attr(unix.NFTA_SET_TABLE, text(nftTableName)),
		attr(unix.NFTA_SET_NAME, text(l.SetName)),
		attr(unix.NFTA_SET_FLAGS, be32(flags)),
		attr(unix.NFTA_SET_KEY_TYPE, be32(set.key.GetNFTMagic())),
		attr(unix.NFTA_SET_KEY_LEN, be32(set.key.Bytes)),
		attr(unix.NFTA_SET_ID, be32(l.SetID)),
		nested(unix.NFTA_SET_DESC, attr(unix.NFTA_SET_DESC_SIZE, be32(uint32(len(set.elements))))),
		attr(unix.NFTA_SET_USERDATA, userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, order)))}
	for piece := range slices.Chunk(set.elements, 1000) {
		elements := make([]netlink.Attribute, len(piece))
		for i, e := range piece {
			elements[i] = nested(unix.NFTA_LIST_ELEM, nftElement(e)...)
		}
		steps = append(steps, nftStep(what, unix.NFT_MSG_NEWSETELEM, netlink.Create,
			attr(unix.NFTA_SET_ELEM_LIST_TABLE, text(nftTableName)),
			attr(unix.NFTA_SET_ELEM_LIST_SET, text(l.SetName)),
			attr(unix.NFTA_SET_ELEM_LIST_SET_ID, be32(l.SetID)),
			nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, elements...)))
	}
	return steps
}

func nftElement(e nftables.SetElement) []netlink.Attribute {
	key := nested(unix.NFTA_SET_ELEM_KEY, attr(unix.NFTA_DATA_VALUE, e.Key))
	if !e.IntervalEnd {
		return []netlink.Attribute{key}
	}
	return []netlink.Attribute{attr(unix.NFTA_SET_ELEM_FLAGS, be32(unix.NFT_SET_ELEM_INTERVAL_END)), key}
}

func nftStep(what string, kind int, flags netlink.HeaderFlags, list ...netlink.Attribute) step {
	return step{what: what, Message: nftMessage(kind, flags, list...)}
}

func nftMessage(kind int, flags netlink.HeaderFlags, list ...netlink.Attribute) netlink.Message {
	return message(uint16(unix.NFNL_SUBSYS_NFTABLES<<8|kind), flags, []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, list...)
}

func attr(kind uint16, data []byte) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: data}
}
func nested(kind uint16, list ...netlink.Attribute) netlink.Attribute {
	return netlink.Attribute{Type: kind | unix.NLA_F_NESTED, Data: attrs(list...)}
}
func text(s string) []byte { return append([]byte(s), 0) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
