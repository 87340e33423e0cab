package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftRead reads our table back. ok is false when there is none.
func nftRead() (t nftTable, ok bool, err error) {
	s, err := dialNetlink(unix.NETLINK_NETFILTER)
	if err != nil {
		return t, false, err
	}
	defer s.Close()
	// Reading is several questions. Who takes the table away between two of them makes the later one fail; the next reading finds no table, or a new one.
	for range 5 {
		if t, ok, err = nftReadTable(s); !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	if err != nil {
		return t, ok, fmt.Errorf("read nftables: %w", err)
	}
	return t, ok, nil
}

func nftReadTable(s *nlSocket) (t nftTable, ok bool, err error) {
	_, err = s.Execute(nftMessage(unix.NFT_MSG_GETTABLE, netlink.Acknowledge, attr(unix.NFTA_TABLE_NAME, text(nftTableName))))
	if errors.Is(err, unix.ENOENT) {
		return t, false, nil
	}
	if err != nil {
		return t, false, err
	}
	t.sets = map[string]nftSet{}
	if err := nftDump(s, unix.NFT_MSG_GETCHAIN, func(ad *netlink.AttributeDecoder) error {
		c, ours, err := nftDecodeChain(ad)
		if ours {
			t.chains = append(t.chains, c)
		}
		return err
	}); err != nil {
		return t, true, err
	}
	if err := nftDump(s, unix.NFT_MSG_GETRULE, func(ad *netlink.AttributeDecoder) error {
		chain, r, err := nftDecodeRule(ad)
		for i := range t.chains {
			if t.chains[i].name == chain {
				t.chains[i].rules = append(t.chains[i].rules, r)
			}
		}
		return err
	}, attr(unix.NFTA_RULE_TABLE, text(nftTableName))); err != nil {
		return t, true, err
	}
	var names []string
	if err := nftDump(s, unix.NFT_MSG_GETSET, func(ad *netlink.AttributeDecoder) error {
		name, set, err := nftDecodeSet(ad)
		names = append(names, name)
		t.sets[name] = set
		return err
	}, attr(unix.NFTA_SET_TABLE, text(nftTableName))); err != nil {
		return t, true, err
	}
	for _, name := range names {
		set := t.sets[name]
		if err := nftDump(s, unix.NFT_MSG_GETSETELEM, func(ad *netlink.AttributeDecoder) error {
			elements, err := nftDecodeElements(ad)
			set.elements = append(set.elements, elements...)
			return err
		}, attr(unix.NFTA_SET_ELEM_LIST_TABLE, text(nftTableName)), attr(unix.NFTA_SET_ELEM_LIST_SET, text(name))); err != nil {
			return t, true, err
		}
		t.sets[name] = set
	}
	return t, true, nil
}

// nftDump asks for a list and hands each entry's attributes to decode.
func nftDump(s *nlSocket, kind int, decode func(*netlink.AttributeDecoder) error, filter ...netlink.Attribute) error {
	replies, err := s.Execute(nftMessage(kind, netlink.Dump, filter...))
	if err != nil {
		return err
	}
	for _, m := range replies {
		const header = 4 // struct nfgenmsg
		if len(m.Data) < header {
			return errors.New("short netfilter message")
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[header:])
		if err != nil {
			return err
		}
		ad.ByteOrder = binary.BigEndian
		if err := decode(ad); err != nil {
			return err
		}
	}
	return nil
}

// nftDecodeChain decodes one chain. The kernel lists those of all tables.
func nftDecodeChain(ad *netlink.AttributeDecoder) (c nftChain, ours bool, err error) {
	const drop = 0
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_CHAIN_TABLE:
			ours = ad.String() == nftTableName
		case unix.NFTA_CHAIN_NAME:
			c.name = ad.String()
		case unix.NFTA_CHAIN_TYPE:
			c.kind = ad.String()
		case unix.NFTA_CHAIN_POLICY:
			c.drop = ad.Uint32() == drop
		case unix.NFTA_CHAIN_HOOK:
			ad.Nested(func(hook *netlink.AttributeDecoder) error {
				for hook.Next() {
					switch hook.Type() {
					case unix.NFTA_HOOK_HOOKNUM:
						c.hook = hook.Uint32()
					case unix.NFTA_HOOK_PRIORITY:
						c.priority = int32(hook.Uint32())
					}
				}
				return nil
			})
		}
	}
	return c, ours, ad.Err()
}

func nftDecodeSet(ad *netlink.AttributeDecoder) (name string, set nftSet, err error) {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_NAME:
			name = ad.String()
		case unix.NFTA_SET_FLAGS:
			set.interval = ad.Uint32()&unix.NFT_SET_INTERVAL != 0
		}
	}
	return name, set, ad.Err()
}

func nftDecodeElements(ad *netlink.AttributeDecoder) (out []nftables.SetElement, err error) {
	for ad.Next() {
		if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		ad.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				var e nftables.SetElement
				list.Nested(func(one *netlink.AttributeDecoder) error {
					for one.Next() {
						switch one.Type() {
						case unix.NFTA_SET_ELEM_FLAGS:
							e.IntervalEnd = one.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
						case unix.NFTA_SET_ELEM_KEY:
							one.Nested(func(key *netlink.AttributeDecoder) error {
								for key.Next() {
									e.Key = key.Bytes()
								}
								return nil
							})
						}
					}
					return nil
				})
				out = append(out, e)
			}
			return nil
		})
	}
	return out, ad.Err()
}

// nftDecodeRule decodes one rule; chain is empty when it belongs to another table.
func nftDecodeRule(ad *netlink.AttributeDecoder) (chain string, r nftRule, err error) {
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
