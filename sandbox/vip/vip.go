package vip

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Table is the name of the nftables tables (families ip and ip6).
const Table = "weft-sandbox-vips"

// Protocol is an IP protocol number.
type Protocol uint8

const (
	TCP Protocol = unix.IPPROTO_TCP
	UDP Protocol = unix.IPPROTO_UDP
)

// VIP is one port of a virtual address and where its connections go.
type VIP struct {
	Protocol  Protocol
	Address   netip.AddrPort
	Endpoints []netip.AddrPort // of Address's family; none means that connections are refused
}

// Rules is the whole wanted state.
type Rules struct {
	VIPs []VIP
	// Ranges hold all VIPs. What is sent into them and has no VIP is refused at once
	// (TCP reset, ICMP port unreachable) instead of being lost.
	Ranges []netip.Prefix
	// Local are addresses inside Ranges that belong to the namespace itself (cluster DNS).
	Local []netip.Addr
}

// Apply replaces all rules in one transaction: a packet sees either the old or
// the new ones. It must run on a thread inside the network namespace.
func Apply(r Rules) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, f := range []family{ip4, ip6} {
		if err := f.write(c, r); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables refused the service rules: %w", explain(err))
	}
	return nil
}

// Remove takes both tables away.
func Remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, f := range []family{ip4, ip6} {
		t := c.AddTable(&nftables.Table{Family: f.table, Name: Table})
		c.DelTable(t)
	}
	return c.Flush()
}

func explain(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w (the kernel needs nf_tables with NAT, numgen and reject: CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_NUMGEN, CONFIG_NFT_REJECT)", err)
	}
	return err
}

// family is what differs between IPv4 and IPv6.
type family struct {
	table    nftables.TableFamily
	addrType nftables.SetDatatype
	addrLen  uint32
	src, dst uint32 // offsets in the network header
	// nextReg is the 32-bit register right after an address that starts in register 1.
	nextReg uint32
	nat     uint32
	reject  uint8 // ICMP code of "port unreachable"
	is4     bool
}

var (
	ip4 = family{nftables.TableFamilyIPv4, nftables.TypeIPAddr, 4, 12, 16, unix.NFT_REG32_01, unix.NFPROTO_IPV4, 3, true}
	ip6 = family{nftables.TableFamilyIPv6, nftables.TypeIP6Addr, 16, 8, 24, unix.NFT_REG32_04, unix.NFPROTO_IPV6, 4, false}
)

func (f family) write(c *nftables.Conn, r Rules) error {
	// Add, delete, add: works whether or not the table is there, in one transaction.
	t := &nftables.Table{Family: f.table, Name: Table}
	c.AddTable(t)
	c.DelTable(t)
	t = c.AddTable(t)

	services, err := f.services(c, t, r.VIPs)
	if err != nil {
		return err
	}
	hairpin, err := f.hairpin(c, t, r.VIPs)
	if err != nil {
		return err
	}
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: f.dispatch(services)})
	}
	post := c.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	// A pod that reaches itself through a VIP would answer itself directly and drop what comes from its own address.
	c.AddRule(&nftables.Rule{Table: t, Chain: post, Exprs: []expr.Any{
		f.load(f.src, unix.NFT_REG_1), f.load(f.dst, f.nextReg),
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: hairpin.Name, SetID: hairpin.ID},
		&expr.Masq{},
	}})
	for name, hook := range map[string]*nftables.ChainHook{"forward": nftables.ChainHookForward, "local-output": nftables.ChainHookOutput} {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
		f.refuse(c, t, ch, r)
	}
	return nil
}

// services makes a chain for each VIP that has endpoints and the map that leads there.
func (f family) services(c *nftables.Conn, t *nftables.Table, vips []VIP) (*nftables.Set, error) {
	vips = append([]VIP(nil), vips...)
	sort.Slice(vips, func(i, j int) bool {
		if vips[i].Protocol != vips[j].Protocol {
			return vips[i].Protocol < vips[j].Protocol
		}
		return vips[i].Address.Compare(vips[j].Address) < 0
	})
	key, err := nftables.ConcatSetType(nftables.TypeInetProto, f.addrType, nftables.TypeInetService)
	if err != nil {
		return nil, err
	}
	services := &nftables.Set{Table: t, Name: "services", IsMap: true, Concatenation: true, KeyType: key, DataType: nftables.TypeVerdict}
	var elements []nftables.SetElement
	seen := map[string]bool{}
	for i, v := range vips {
		if v.Address.Addr().Is4() != f.is4 || len(v.Endpoints) == 0 {
			continue
		}
		k := append(padded([]byte{byte(v.Protocol)}), padded(v.Address.Addr().AsSlice())...)
		k = append(k, padded(binaryutil.BigEndian.PutUint16(v.Address.Port()))...)
		if seen[string(k)] {
			return nil, fmt.Errorf("the virtual address %s (protocol %d) is given twice", v.Address, v.Protocol)
		}
		seen[string(k)] = true
		ch := c.AddChain(&nftables.Chain{Name: fmt.Sprintf("vip-%d", i), Table: t})
		if err := f.spread(c, t, ch, v); err != nil {
			return nil, err
		}
		elements = append(elements, nftables.SetElement{Key: k, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: ch.Name}})
	}
	if err := c.AddSet(services, elements); err != nil {
		return nil, fmt.Errorf("nftables set %s: %w", services.Name, err)
	}
	return services, nil
}

// spread writes "numgen random mod N map {0: ip . port, ...}" and DNATs to it.
func (f family) spread(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain, v VIP) error {
	data, err := nftables.ConcatSetType(f.addrType, nftables.TypeInetService)
	if err != nil {
		return err
	}
	m := &nftables.Set{Table: t, Anonymous: true, Constant: true, IsMap: true, KeyType: nftables.TypeInteger, DataType: data}
	var elements []nftables.SetElement
	for i, e := range v.Endpoints {
		if e.Addr().Is4() != f.is4 {
			return fmt.Errorf("endpoint %s of %s is of another address family", e, v.Address)
		}
		val := append(padded(e.Addr().AsSlice()), padded(binaryutil.BigEndian.PutUint16(e.Port()))...)
		elements = append(elements, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: val})
	}
	if err := c.AddSet(m, elements); err != nil {
		return fmt.Errorf("nftables map of %s: %w", v.Address, err)
	}
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
		&expr.Numgen{Register: unix.NFT_REG_1, Modulus: uint32(len(v.Endpoints)), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.nat, RegAddrMin: unix.NFT_REG_1, RegAddrMax: unix.NFT_REG_1, RegProtoMin: f.nextReg, RegProtoMax: f.nextReg, Specified: true},
	}})
	return nil
}

// dispatch writes "meta l4proto . ip daddr . th dport vmap @services".
func (f family) dispatch(services *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1},
		f.load(f.dst, unix.NFT_REG32_01),
		&expr.Payload{DestRegister: unix.NFT_REG32_01 + f.addrLen/4, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: services.Name, SetID: services.ID},
	}
}

func (f family) load(offset, register uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen}
}

func (f family) hairpin(c *nftables.Conn, t *nftables.Table, vips []VIP) (*nftables.Set, error) {
	key, err := nftables.ConcatSetType(f.addrType, f.addrType)
	if err != nil {
		return nil, err
	}
	set := &nftables.Set{Table: t, Name: "hairpin", Concatenation: true, KeyType: key}
	var elements []nftables.SetElement
	seen := map[netip.Addr]bool{}
	for _, v := range vips {
		for _, e := range v.Endpoints {
			if a := e.Addr(); a.Is4() == f.is4 && !seen[a] {
				seen[a] = true
				elements = append(elements, nftables.SetElement{Key: append(a.AsSlice(), a.AsSlice()...)})
			}
		}
	}
	if err := c.AddSet(set, elements); err != nil {
		return nil, fmt.Errorf("nftables set %s: %w", set.Name, err)
	}
	return set, nil
}

func (f family) refuse(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain, r Rules) {
	for _, a := range r.Local {
		if a.Is4() == f.is4 {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
				f.load(f.dst, unix.NFT_REG_1),
				&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: a.AsSlice()},
				&expr.Verdict{Kind: expr.VerdictAccept},
			}})
		}
	}
	for _, p := range r.Ranges {
		if p.Addr().Is4() != f.is4 {
			continue
		}
		inRange := []expr.Any{
			f.load(f.dst, unix.NFT_REG_1),
			&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: f.addrLen, Mask: mask(p, int(f.addrLen)), Xor: make([]byte, f.addrLen)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: p.Masked().Addr().AsSlice()},
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(append([]expr.Any(nil), inRange...),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{byte(TCP)}},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		)})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(inRange, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.reject})})
	}
}

func mask(p netip.Prefix, n int) []byte {
	m := make([]byte, n)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// padded fills a value up to whole 32-bit registers, as concatenations are laid out.
func padded(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
