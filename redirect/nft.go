package redirect

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// nftTable is our table as the kernel is told it, and as the kernel gives it back: the form in which both are compared.
type nftTable struct {
	chains []nftChain
	sets   map[string]nftSet // anonymous sets by the name that lookups use
}

type nftChain struct {
	name     string
	kind     string // empty: not a base chain
	hook     uint32
	priority int32
	drop     bool // policy
	rules    []nftRule
}

type nftRule struct {
	exprs   []expr.Any
	comment string
}

type nftSet struct {
	key      nftables.SetDatatype
	interval bool
	elements []nftables.SetElement
}

// nftTableName is the table that holds all our rules, in family inet.
const nftTableName = "weft"

// nftCompile spells chains as nftables expressions. Expressions compute in registers, as in netfilter's own tools: load a
// field into register 1, compare register 1, and so on; the first comparison that fails ends the rule.
func nftCompile(chains []chain) nftTable {
	t := nftTable{sets: map[string]nftSet{}}
	for _, c := range chains {
		n := nftChain{name: c.name, kind: c.kind, priority: int32(c.priority)}
		if c.hook == "output" {
			n.hook = unix.NF_INET_LOCAL_OUT
		}
		for _, r := range c.rules {
			b := exprBuilder{table: &t}
			for _, m := range r.match {
				b.match(m)
			}
			for _, a := range r.do {
				b.action(a)
			}
			n.rules = append(n.rules, nftRule{exprs: b.exprs, comment: r.comment})
		}
		t.chains = append(t.chains, n)
	}
	return t
}

// exprBuilder collects the expressions of one rule, and the sets that they need.
type exprBuilder struct {
	table *nftTable
	exprs []expr.Any
}

const reg = 1

func (b *exprBuilder) add(e ...expr.Any) { b.exprs = append(b.exprs, e...) }

func (b *exprBuilder) equal(data []byte, not bool) {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	b.add(&expr.Cmp{Op: op, Register: reg, Data: data})
}

// anyOf asks whether one of the bits is set.
func (b *exprBuilder) anyOf(bits []byte, not bool) {
	zero := make([]byte, len(bits))
	b.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(bits)), Mask: bits, Xor: zero})
	b.equal(zero, !not)
}

// oneOf compares with a value, or with an anonymous set when there are several.
func (b *exprBuilder) oneOf(key nftables.SetDatatype, not bool, values [][]byte) {
	if len(values) == 1 {
		b.equal(values[0], not)
		return
	}
	elements := make([]nftables.SetElement, len(values))
	for i, v := range values {
		elements[i].Key = v
	}
	b.lookup(nftSet{key: key, elements: elements}, not)
}

func (b *exprBuilder) lookup(set nftSet, not bool) {
	// The kernel replaces %d by a number of its own; until then the set's ID, unique in the transaction, finds it.
	id := uint32(len(b.table.sets) + 1)
	b.table.sets[setName(anonymousSet, id)] = set
	b.add(&expr.Lookup{SourceRegister: reg, SetName: anonymousSet, SetID: id, Invert: not})
}

const anonymousSet = "__set%d"

// setName is the key in nftTable.sets of a set that a lookup refers to.
func setName(name string, id uint32) string {
	if name == anonymousSet {
		return fmt.Sprintf(anonymousSet, id)
	}
	return name
}

func (b *exprBuilder) match(m match) {
	switch m.kind {
	case onFamily4:
		b.meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4}, m.not)
	case onFamily6:
		b.meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV6}, m.not)
	case onIn:
		b.meta(expr.MetaKeyIIFNAME, interfaceBytes(m.name), m.not)
	case onOut:
		b.meta(expr.MetaKeyOIFNAME, interfaceBytes(m.name), m.not)
	case onSource, onDestination:
		b.address(m)
	case onTCP, onUDP:
		proto := byte(unix.IPPROTO_TCP)
		if m.kind == onUDP {
			proto = unix.IPPROTO_UDP
		}
		b.meta(expr.MetaKeyL4PROTO, []byte{proto}, false)
		if len(m.ports) > 0 {
			b.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
			b.oneOf(nftables.TypeInetService, m.not, each(m.ports, binaryutil.BigEndian.PutUint16))
		}
	case onReset:
		b.meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}, false)
		b.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1})
		b.anyOf([]byte{tcpReset}, m.not)
	case onUID:
		b.add(&expr.Meta{Key: expr.MetaKeySKUID, Register: reg})
		b.oneOf(nftables.TypeUID, m.not, each(m.ids, binaryutil.NativeEndian.PutUint32))
	case onGID:
		b.add(&expr.Meta{Key: expr.MetaKeySKGID, Register: reg})
		b.oneOf(nftables.TypeGID, m.not, each(m.ids, binaryutil.NativeEndian.PutUint32))
	case onLocal:
		b.add(&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true})
		b.equal(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL), m.not)
	case onState:
		b.add(&expr.Ct{Register: reg, Key: expr.CtKeySTATE})
		b.anyOf(binaryutil.NativeEndian.PutUint32(m.value), m.not)
	case onAssured:
		b.add(&expr.Ct{Register: reg, Key: expr.CtKeySTATUS})
		b.anyOf(binaryutil.NativeEndian.PutUint32(ctAssured), m.not)
	case onOriginal:
		b.add(&expr.Ct{Register: reg, Key: expr.CtKeyDIRECTION})
		b.equal([]byte{0}, m.not)
	case onOriginalTo:
		b.add(&expr.Ct{Register: reg, Key: expr.CtKeyPROTODST, Direction: 0})
		b.oneOf(nftables.TypeInetService, m.not, each(m.ports, binaryutil.BigEndian.PutUint16))
	case onMark:
		b.meta(expr.MetaKeyMARK, binaryutil.NativeEndian.PutUint32(m.value), m.not)
	case onConnMark:
		b.add(&expr.Ct{Register: reg, Key: expr.CtKeyMARK})
		b.equal(binaryutil.NativeEndian.PutUint32(m.value), m.not)
	case onTransparent:
		b.add(&expr.Socket{Register: reg, Key: expr.SocketKeyTransparent})
		b.equal([]byte{1}, m.not)
	case onListener:
		// Without any socket the rule ends here. A wildcard key exists too, but only since Linux 5.11.
		b.add(&expr.Socket{Register: reg, Key: expr.SocketKeyTransparent})
		b.equal([]byte{0}, m.not)
	}
}

func (b *exprBuilder) meta(key expr.MetaKey, data []byte, not bool) {
	b.add(&expr.Meta{Key: key, Register: reg})
	b.equal(data, not)
}

// address compares the packet's source or destination with one range, or with an interval set. In an inet table the family has
// to be checked first, as the header's layout depends on it.
func (b *exprBuilder) address(m match) {
	key, proto, offset, size := nftables.TypeIPAddr, byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if isIPv6(m.cidrs[0]) {
		key, proto, offset, size = nftables.TypeIP6Addr, unix.NFPROTO_IPV6, 8, 16
	}
	if m.kind == onDestination {
		offset += size
	}
	b.meta(expr.MetaKeyNFPROTO, []byte{proto}, false)
	b.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
	if len(m.cidrs) > 1 {
		b.lookup(nftSet{key: key, interval: true, elements: intervals(m.cidrs)}, m.not)
		return
	}
	p := m.cidrs[0]
	if p.Bits() < int(size)*8 {
		b.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: size, Mask: maskBytes(p), Xor: make([]byte, size)})
	}
	b.equal(p.Addr().AsSlice(), m.not)
}

// intervals gives the elements of an interval set: the first address of each range, and the first address after it marked as the end.
// The ranges must be sorted and apart.
func intervals(list []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	if !list[0].Addr().IsUnspecified() {
		// The gap before the first range, as nft writes it.
		out = append(out, nftables.SetElement{Key: make([]byte, list[0].Addr().BitLen()/8), IntervalEnd: true})
	}
	for _, p := range list {
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := lastAddr(p).Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i, m := range maskBytes(p) {
		b[i] |= ^m
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func maskBytes(p netip.Prefix) []byte {
	return maskOf(p.Bits(), p.Addr().BitLen()/8)
}

func (b *exprBuilder) action(a action) {
	set := func(v uint32) { b.add(&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint32(v)}) }
	setPacketMark := &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg}
	port := func() { b.add(&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(a.port)}) }
	switch a.kind {
	case doReturn:
		b.add(&expr.Verdict{Kind: expr.VerdictReturn})
	case doAccept:
		b.add(&expr.Verdict{Kind: expr.VerdictAccept})
	case doDrop:
		b.add(&expr.Verdict{Kind: expr.VerdictDrop})
	case doGoto:
		b.add(&expr.Verdict{Kind: expr.VerdictGoto, Chain: a.chain})
	case doRedirect:
		port()
		b.add(&expr.Redir{RegisterProtoMin: reg})
	case doTProxy:
		port()
		b.add(&expr.TProxy{RegPort: reg})
		set(markTProxy)
		b.add(setPacketMark, &expr.Verdict{Kind: expr.VerdictAccept})
	case doSetMark:
		set(a.value)
		b.add(setPacketMark)
	case doSetConnMark:
		set(a.value)
		b.add(&expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: reg})
	case doMarkFromConn:
		b.add(&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, setPacketMark)
	}
}

// interfaceBytes is the name with its final NUL, or without one when it is a prefix to match.
func interfaceBytes(name string) []byte {
	stem, wild := interfaceStem(name)
	if wild {
		return []byte(stem)
	}
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, stem)
	return b
}

func each[T any](list []T, encode func(T) []byte) [][]byte {
	out := make([][]byte, len(list))
	for i, v := range list {
		out[i] = encode(v)
	}
	return out
}
