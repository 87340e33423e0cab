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

// nftKernelTable is how the kernel knows our table.
var nftKernelTable = &nftables.Table{Name: nftTableName, Family: nftables.TableFamilyINet}

// nftWrite replaces our table by t in one transaction: a packet meets either all the old rules or all the new ones. No chains means no table.
func nftWrite(t nftTable) error {
	c, err := nftDial()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	// Adding first makes the deletion succeed whether or not the table is there.
	c.AddTable(nftKernelTable)
	c.DelTable(nftKernelTable)
	if len(t.chains) > 0 {
		c.AddTable(nftKernelTable)
	}
	// All chains come before all rules, as rules name chains.
	for _, ch := range t.chains {
		n := &nftables.Chain{Table: nftKernelTable, Name: ch.name}
		if ch.kind != "" {
			policy := nftables.ChainPolicyAccept
			n.Type, n.Policy = nftables.ChainType(ch.kind), &policy
			n.Hooknum, n.Priority = nftables.ChainHookRef(nftables.ChainHook(ch.hook)), nftables.ChainPriorityRef(nftables.ChainPriority(ch.priority))
		}
		c.AddChain(n)
	}
	for _, ch := range t.chains {
		for _, r := range ch.rules {
			if err := nftAddSets(c, t, r); err != nil {
				return err
			}
			c.AddRule(&nftables.Rule{
				Table: nftKernelTable, Chain: &nftables.Chain{Name: ch.name}, Exprs: r.exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
			})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables transaction: %w", err)
	}
	return nil
}

// nftDial opens a netlink socket in the network namespace of the calling thread.
func nftDial() (*nftables.Conn, error) {
	// One message may not be larger than the send buffer, whose default is too small for thousands of ranges.
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetWriteBuffer(8 << 20) }))
	if err != nil {
		return nil, fmt.Errorf("open a netfilter socket: %w", err)
	}
	return c, nil
}

// nftAddSets adds the anonymous sets that a rule looks things up in.
func nftAddSets(c *nftables.Conn, t nftTable, r nftRule) error {
	for _, e := range r.exprs {
		l, ok := e.(*expr.Lookup)
		if !ok {
			continue
		}
		set := t.sets[setName(l.SetName, l.SetID)]
		s := &nftables.Set{
			Table: nftKernelTable, ID: l.SetID, Name: l.SetName, KeyType: set.key,
			Anonymous: true, Constant: true, Interval: set.interval,
		}
		// A netlink attribute holds 64 KiB, so long lists are added in pieces.
		const piece = 500
		first := set.elements[:min(piece, len(set.elements))]
		if err := c.AddSet(s, first); err != nil {
			return fmt.Errorf("nftables set: %w", err)
		}
		more := *s
		more.Anonymous = false // the library refuses to add to an anonymous set, the kernel does not within the transaction
		for rest := range slices.Chunk(set.elements[len(first):], piece) {
			if err := c.SetAddElements(&more, rest); err != nil {
				return fmt.Errorf("nftables set: %w", err)
			}
		}
	}
	return nil
}

// nftRead reads our table back. ok is false when there is none.
func nftRead() (t nftTable, ok bool, err error) {
	c, err := nftDial()
	if err != nil {
		return t, false, err
	}
	defer c.CloseLasting()
	if t, ok, err = nftReadTable(c); err != nil {
		return t, ok, fmt.Errorf("read nftables: %w", err)
	}
	return t, ok, nil
}

func nftReadTable(c *nftables.Conn) (t nftTable, ok bool, err error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return t, false, err
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == nftTableName }) {
		return t, false, nil
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return t, false, err
	}
	rules, err := nftReadRules()
	if err != nil {
		return t, false, err
	}
	t.sets = map[string]nftSet{}
	for _, ch := range chains {
		if ch.Table.Name != nftTableName {
			continue
		}
		n := nftChain{name: ch.Name, kind: string(ch.Type), rules: rules[ch.Name]}
		if ch.Hooknum != nil && ch.Priority != nil {
			n.hook, n.priority = uint32(*ch.Hooknum), int32(*ch.Priority)
		}
		n.drop = ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		t.chains = append(t.chains, n)
	}
	sets, err := c.GetSets(nftKernelTable)
	if err != nil {
		return t, false, err
	}
	for _, s := range sets {
		s.Table = nftKernelTable
		elements, err := c.GetSetElements(s)
		if err != nil {
			return t, false, err
		}
		t.sets[s.Name] = nftSet{key: s.KeyType, interval: s.Interval, elements: elements}
	}
	return t, true, nil
}

// nftReadRules reads the rules of all chains of our table at once. google/nftables can do it chain by chain, but drops the expressions that it
// cannot decode (socket, tproxy), so that a rule would look shorter than it is.
func nftReadRules() (map[string][]nftRule, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	table, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(nftTableName + "\x00")}})
	if err != nil {
		return nil, err
	}
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE),
			Flags: netlink.Request | netlink.Dump,
		},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, table...),
	})
	if err != nil {
		return nil, err
	}
	rules := map[string][]nftRule{}
	for _, m := range replies {
		chain, r, err := nftDecodeRule(m.Data)
		if err != nil {
			return nil, err
		}
		if chain != "" {
			rules[chain] = append(rules[chain], r)
		}
	}
	return rules, nil
}

// nftDecodeRule decodes one rule; chain is empty when it belongs to another table.
func nftDecodeRule(data []byte) (chain string, r nftRule, err error) {
	const header = 4 // struct nfgenmsg
	if len(data) < header {
		return "", r, errors.New("short rule message")
	}
	ad, err := netlink.NewAttributeDecoder(data[header:])
	if err != nil {
		return "", r, err
	}
	ours := false
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_TABLE:
			ours = ad.String() == nftTableName
		case unix.NFTA_RULE_CHAIN:
			chain = ad.String()
		case unix.NFTA_RULE_USERDATA:
			r.comment, _ = userdata.GetString(ad.Bytes(), userdata.TypeComment)
		case unix.NFTA_RULE_EXPRESSIONS:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(one *netlink.AttributeDecoder) error {
						e, err := nftDecodeExpr(one)
						r.exprs = append(r.exprs, e)
						return err
					})
				}
				return nil
			})
		}
	}
	if !ours {
		chain = ""
	}
	return chain, r, ad.Err()
}

// nftDecodeExpr decodes the expressions that our rules are made of; any other one is kept as a stranger, to be seen.
func nftDecodeExpr(ad *netlink.AttributeDecoder) (expr.Any, error) {
	var name string
	var data []byte
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			data = ad.Bytes()
		}
	}
	if err := ad.Err(); err != nil {
		return nil, err
	}
	var e expr.Any
	switch name {
	case "meta":
		e = &expr.Meta{}
	case "ct":
		return nftDecodeCt(data)
	case "payload":
		e = &expr.Payload{}
	case "cmp":
		e = &expr.Cmp{}
	case "bitwise":
		e = &expr.Bitwise{}
	case "lookup":
		e = &expr.Lookup{}
	case "fib":
		e = &expr.Fib{}
	case "socket":
		e = &expr.Socket{}
	case "redir":
		e = &expr.Redir{}
	case "counter":
		e = &expr.Counter{}
	case "tproxy":
		return nftDecodeTProxy(data)
	case "immediate":
		imm := &expr.Immediate{}
		if err := expr.Unmarshal(unix.NFPROTO_INET, data, imm); err != nil {
			return nil, err
		}
		if imm.Register != unix.NFT_REG_VERDICT {
			return imm, nil
		}
		e = &expr.Verdict{}
	default:
		return stranger{Any: &expr.Notrack{}, name: name}, nil
	}
	return e, expr.Unmarshal(unix.NFPROTO_INET, data, e)
}

// stranger is an expression that none of our rules has.
type stranger struct {
	expr.Any
	name string
}

// nftDecodeTProxy: the family is a 32-bit number, which the library takes for 8 bits.
func nftDecodeTProxy(data []byte) (expr.Any, error) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	e := &expr.TProxy{}
	for ad.Next() {
		switch ad.Type() {
		case expr.NFTA_TPROXY_FAMILY:
			e.Family = byte(ad.Uint32())
		case expr.NFTA_TPROXY_REG_ADDR:
			e.RegAddr = ad.Uint32()
		case expr.NFTA_TPROXY_REG_PORT:
			e.RegPort = ad.Uint32()
		}
	}
	return e, ad.Err()
}

// nftDecodeCt: the library overlooks the source register, so that setting a mark would look like reading it.
func nftDecodeCt(data []byte) (expr.Any, error) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	e := &expr.Ct{}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_CT_KEY:
			e.Key = expr.CtKey(ad.Uint32())
		case unix.NFTA_CT_DREG:
			e.Register = ad.Uint32()
		case unix.NFTA_CT_SREG:
			e.Register, e.SourceRegister = ad.Uint32(), true
		case unix.NFTA_CT_DIRECTION:
			e.Direction = uint32(ad.Uint8())
		}
	}
	return e, ad.Err()
}
