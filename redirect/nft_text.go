package redirect

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// This file writes a table as `nft list table` would. The text is also what Verify compares: two tables with the same text do the same, because
// whatever the writer does not know comes out as itself, in angle brackets, and equals nothing of ours.

// text writes the whole table.
func (t nftTable) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", nftTableName)
	for i, c := range t.chains {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if h := c.header(); h != "" {
			fmt.Fprintf(&b, "\t\t%s\n", h)
		}
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", t.rule(r))
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// header says where a base chain sits; it is empty for other chains.
func (c nftChain) header() string {
	if c.kind == "" {
		return ""
	}
	policy := "accept"
	if c.drop {
		policy = "drop"
	}
	return fmt.Sprintf("type %s hook %s priority %s; policy %s;", c.kind, hookName(c.hook), priorityName(c.priority, c.hook), policy)
}

func hookName(h uint32) string {
	names := []string{"prerouting", "input", "forward", "output", "postrouting"}
	if int(h) < len(names) {
		return names[h]
	}
	return strconv.Itoa(int(h))
}

// priorityName uses nft's names. dstnat is only a name in prerouting; in output nft prints the number.
func priorityName(p int32, hook uint32) string {
	switch d := p - prioMangle; {
	case d == 0:
		return "mangle"
	case d > 0 && d <= 10:
		return fmt.Sprintf("mangle + %d", d)
	case d < 0 && d >= -10:
		return fmt.Sprintf("mangle - %d", -d)
	case p == prioNAT && hook == unix.NF_INET_PRE_ROUTING:
		return "dstnat"
	}
	return strconv.Itoa(int(p))
}

func (t nftTable) rule(r nftRule) string {
	w := ruleWriter{table: t}
	for _, e := range r.exprs {
		w.expr(e)
	}
	w.settle()
	if r.comment != "" {
		w.say("comment %q", r.comment)
	}
	return strings.Join(w.words, " ")
}

// ruleWriter follows the registers of one rule.
type ruleWriter struct {
	table nftTable
	words []string
	left  string // what register 1 holds, as nft calls it
	form  form   // how values compared with it are written
	mask  []byte
	value []byte // or the constant that it holds
	// pending is a check on which the next field depends ("meta l4proto tcp" before "tcp dport"), and which nft does not print then.
	pending, proto string
}

// form is how a value is written.
type form int

const (
	formHex form = iota
	formNumber
	formPort
	formIPv4
	formIPv6
	formName
	formL4
	formFamily
	formAddrType
	formDirection
	formState
	formStatus
	formFlags
	formBool
)

func (w *ruleWriter) say(format string, args ...any) {
	w.words = append(w.words, fmt.Sprintf(format, args...))
}

// settle prints a check that turned out to matter by itself.
func (w *ruleWriter) settle() {
	if w.pending != "" {
		w.say("%s", w.pending)
		w.pending = ""
	}
}

func (w *ruleWriter) load(left string, f form) { w.left, w.form, w.mask, w.value = left, f, nil, nil }

func (w *ruleWriter) unknown(e expr.Any) {
	w.settle()
	w.say("<%T %+v>", e, e)
}

func (w *ruleWriter) expr(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		w.meta(e)
	case *expr.Ct:
		w.ct(e)
	case *expr.Payload:
		w.payload(e)
	case *expr.Fib:
		if !e.ResultADDRTYPE || !e.FlagDADDR || e.FlagSADDR || e.FlagMARK || e.FlagIIF || e.FlagOIF || e.FlagPRESENT {
			w.unknown(e)
			return
		}
		w.settle()
		w.load("fib daddr type", formAddrType)
	case *expr.Socket:
		if e.Key != expr.SocketKeyTransparent {
			w.unknown(e)
			return
		}
		// "socket transparent" needs no protocol check in front, so one that stands there is printed.
		w.settle()
		w.load("socket transparent", formBool)
	case *expr.Bitwise:
		if len(bytes.Trim(e.Xor, "\x00")) > 0 || e.SourceRegister != e.DestRegister {
			w.unknown(e)
			return
		}
		w.mask = e.Mask
	case *expr.Cmp:
		w.compare(e)
	case *expr.Lookup:
		w.lookup(e)
	case *expr.Immediate:
		w.value = e.Data
	case *expr.Redir:
		w.settle()
		if e.RegisterProtoMax != 0 && e.RegisterProtoMax != e.RegisterProtoMin || e.Flags&^unix.NF_NAT_RANGE_PROTO_SPECIFIED != 0 {
			w.unknown(e)
			return
		}
		w.say("redirect to :%s", w.write(w.value, formPort))
	case *expr.TProxy:
		w.settle()
		if e.Family != 0 || e.RegAddr != 0 {
			w.unknown(e)
			return
		}
		w.say("tproxy to :%s", w.write(w.value, formPort))
	case *expr.Verdict:
		w.settle()
		w.say("%s", verdict(e))
	case *expr.Counter:
		// Counts differ from moment to moment and change nothing.
	default:
		w.unknown(e)
	}
}

func verdict(v *expr.Verdict) string {
	switch v.Kind {
	case expr.VerdictReturn:
		return "return"
	case expr.VerdictAccept:
		return "accept"
	case expr.VerdictDrop:
		return "drop"
	case expr.VerdictGoto:
		return "goto " + v.Chain
	case expr.VerdictJump:
		return "jump " + v.Chain
	}
	return fmt.Sprintf("<verdict %d %s>", v.Kind, v.Chain)
}

func (w *ruleWriter) meta(e *expr.Meta) {
	if e.SourceRegister {
		w.settle()
		if e.Key != expr.MetaKeyMARK {
			w.unknown(e)
			return
		}
		if w.value != nil {
			w.say("meta mark set %s", w.write(w.value, formHex))
		} else {
			w.say("meta mark set %s", w.left)
		}
		return
	}
	switch e.Key {
	case expr.MetaKeyNFPROTO:
		w.settle()
		w.load("meta nfproto", formFamily)
	case expr.MetaKeyL4PROTO:
		w.settle()
		w.load("meta l4proto", formL4)
	case expr.MetaKeyIIFNAME:
		w.settle()
		w.load("iifname", formName)
	case expr.MetaKeyOIFNAME:
		w.settle()
		w.load("oifname", formName)
	case expr.MetaKeySKUID:
		w.settle()
		w.load("meta skuid", formNumber)
	case expr.MetaKeySKGID:
		w.settle()
		w.load("meta skgid", formNumber)
	case expr.MetaKeyMARK:
		w.settle()
		w.load("meta mark", formHex)
	default:
		w.unknown(e)
		w.load("", formHex)
	}
}

func (w *ruleWriter) ct(e *expr.Ct) {
	w.settle()
	if e.SourceRegister {
		if e.Key != expr.CtKeyMARK {
			w.unknown(e)
			return
		}
		w.say("ct mark set %s", w.write(w.value, formHex))
		return
	}
	switch e.Key {
	case expr.CtKeySTATE:
		w.load("ct state", formState)
	case expr.CtKeyDIRECTION:
		w.load("ct direction", formDirection)
	case expr.CtKeyMARK:
		w.load("ct mark", formHex)
	case expr.CtKeySTATUS:
		w.load("ct status", formStatus)
	case expr.CtKeyPROTODST:
		if e.Direction != 0 {
			w.unknown(e)
		}
		w.load("ct original proto-dst", formPort)
	default:
		w.unknown(e)
		w.load("", formHex)
	}
}

// payload names a header field, provided that the check which makes it that field has come before.
func (w *ruleWriter) payload(e *expr.Payload) {
	name := ""
	f := formHex
	switch {
	case e.OperationType == expr.PayloadWrite:
		w.unknown(e)
		return
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2 && e.Len == 2 && (w.proto == "tcp" || w.proto == "udp"):
		name, f = w.proto+" dport", formPort
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 13 && e.Len == 1 && w.proto == "tcp":
		name, f = "tcp flags", formFlags
	case e.Base == expr.PayloadBaseNetworkHeader && w.proto == "ipv4" && e.Len == 4 && e.Offset == 12:
		name, f = "ip saddr", formIPv4
	case e.Base == expr.PayloadBaseNetworkHeader && w.proto == "ipv4" && e.Len == 4 && e.Offset == 16:
		name, f = "ip daddr", formIPv4
	case e.Base == expr.PayloadBaseNetworkHeader && w.proto == "ipv6" && e.Len == 16 && e.Offset == 8:
		name, f = "ip6 saddr", formIPv6
	case e.Base == expr.PayloadBaseNetworkHeader && w.proto == "ipv6" && e.Len == 16 && e.Offset == 24:
		name, f = "ip6 daddr", formIPv6
	default:
		w.settle()
		name = fmt.Sprintf("@%d,%d,%d", e.Base, e.Offset*8, e.Len*8)
	}
	w.pending = ""
	w.load(name, f)
}

func (w *ruleWriter) compare(e *expr.Cmp) {
	if w.mask != nil && slices.Contains([]form{formState, formStatus, formFlags}, w.form) && len(bytes.Trim(e.Data, "\x00")) == 0 {
		not := ""
		if e.Op == expr.CmpOpEq {
			not = "! "
		}
		w.say("%s %s%s", w.left, not, w.write(w.mask, w.form))
		return
	}
	op := ""
	switch e.Op {
	case expr.CmpOpEq:
	case expr.CmpOpNeq:
		op = "!= "
	default:
		w.unknown(e)
		return
	}
	value := w.write(e.Data, w.form)
	if w.mask != nil {
		if bits, ok := prefixBits(w.mask); ok && (w.form == formIPv4 || w.form == formIPv6) {
			value += "/" + strconv.Itoa(bits)
		} else {
			value = fmt.Sprintf("& %x %s", w.mask, value)
		}
	}
	text := fmt.Sprintf("%s %s%s", w.left, op, value)
	if op == "" && (w.form == formL4 || w.form == formFamily) {
		w.proto, w.pending = value, text
		return
	}
	w.say("%s", text)
}

func (w *ruleWriter) lookup(e *expr.Lookup) {
	w.settle()
	op := ""
	if e.Invert {
		op = "!= "
	}
	set, ok := w.table.sets[setName(e.SetName, e.SetID)]
	if !ok {
		w.say("%s %s@%s", w.left, op, e.SetName)
		return
	}
	w.say("%s %s{ %s }", w.left, op, strings.Join(w.elements(set), ", "))
}

// elements lists a set in order; intervals become prefixes where they are one.
func (w *ruleWriter) elements(set nftSet) []string {
	list := append([]nftables.SetElement(nil), set.elements...)
	// The end of a range sorts before the start of the next one at the same address. Ports are big-endian, IDs are not.
	sort.SliceStable(list, func(i, j int) bool {
		a, b := list[i], list[j]
		c := bytes.Compare(a.Key, b.Key)
		if w.form == formNumber && len(a.Key) == 4 && len(b.Key) == 4 {
			c = int(int64(binary.NativeEndian.Uint32(a.Key)) - int64(binary.NativeEndian.Uint32(b.Key)))
		}
		return c < 0 || c == 0 && a.IntervalEnd && !b.IntervalEnd
	})
	var out []string
	for i := 0; i < len(list); i++ {
		e := list[i]
		switch {
		case e.IntervalEnd: // the gap before the first range
		case set.interval:
			end := []byte(nil)
			if i+1 < len(list) && list[i+1].IntervalEnd {
				end = list[i+1].Key
				i++
			}
			out = append(out, intervalText(e.Key, end))
		default:
			out = append(out, w.write(e.Key, w.form))
		}
	}
	return out
}

// intervalText writes the range from start up to, not including, end; no end is the last address of the family.
func intervalText(start, end []byte) string {
	first, ok := netip.AddrFromSlice(start)
	if !ok {
		return fmt.Sprintf("<%x-%x>", start, end)
	}
	var last netip.Addr
	if end == nil {
		last = lastAddr(netip.PrefixFrom(first, 0))
	} else if after, ok := netip.AddrFromSlice(end); ok {
		last = after.Prev()
	}
	for bits := 0; bits <= first.BitLen(); bits++ {
		if p := netip.PrefixFrom(first, bits); p.Masked().Addr() == first && lastAddr(p) == last {
			if bits == first.BitLen() {
				return first.String()
			}
			return p.String()
		}
	}
	return fmt.Sprintf("%s-%s", first, last)
}

func prefixBits(mask []byte) (int, bool) {
	n := 0
	for n < len(mask)*8 && mask[n/8]&(0x80>>(n%8)) != 0 {
		n++
	}
	return n, bytes.Equal(mask, maskOf(n, len(mask)))
}

func maskOf(bits, size int) []byte {
	mask := make([]byte, size)
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

var (
	l4Names       = map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}
	familyNames   = map[byte]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}
	addrTypeNames = map[uint32]string{unix.RTN_LOCAL: "local"}
	stateNames    = []struct {
		bit  uint32
		name string
	}{{1, "invalid"}, {2, "established"}, {4, "related"}, {8, "new"}, {64, "untracked"}}
)

func (w *ruleWriter) write(v []byte, f form) string {
	switch {
	case f == formName:
		if name, terminated := bytes.CutSuffix(v, []byte{0}); terminated {
			return strconv.Quote(string(bytes.TrimRight(name, "\x00")))
		}
		return strconv.Quote(string(v) + "*")
	case f == formPort && len(v) == 2:
		return strconv.Itoa(int(binary.BigEndian.Uint16(v)))
	case f == formL4 && len(v) == 1 && l4Names[v[0]] != "":
		return l4Names[v[0]]
	case f == formFamily && len(v) == 1 && familyNames[v[0]] != "":
		return familyNames[v[0]]
	case f == formDirection && len(v) == 1 && v[0] == 0:
		return "original"
	case f == formFlags && len(v) == 1 && v[0] == tcpReset:
		return "rst"
	case f == formBool && len(v) == 1:
		return strconv.Itoa(int(v[0]))
	case f == formIPv4 && len(v) == 4, f == formIPv6 && len(v) == 16:
		a, _ := netip.AddrFromSlice(v)
		return a.String()
	case len(v) == 4:
		n := binary.NativeEndian.Uint32(v)
		switch {
		case f == formNumber:
			return strconv.FormatUint(uint64(n), 10)
		case f == formAddrType && addrTypeNames[n] != "":
			return addrTypeNames[n]
		case f == formStatus && n == ctAssured:
			return "assured"
		case f == formState:
			var names []string
			for _, s := range stateNames {
				if n&s.bit != 0 {
					names = append(names, s.name)
					n &^= s.bit
				}
			}
			if n == 0 {
				return strings.Join(names, ",")
			}
		case f == formHex:
			return fmt.Sprintf("0x%08x", n)
		}
	}
	return fmt.Sprintf("<%x>", v)
}
