package redirect

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestAnnotationsChangeTheSpecAsInIstio(t *testing.T) {
	cidrs := func(list ...string) (out []netip.Prefix) {
		for _, c := range list {
			out = append(out, netip.MustParsePrefix(c))
		}
		return out
	}
	base := Default()
	base.ExcludeOutboundPorts = []uint16{3306}
	for _, c := range []struct {
		name   string
		pod    map[string]string
		change func(*Spec)
	}{
		{"none", map[string]string{"app": "x"}, func(*Spec) {}},
		{"mode", map[string]string{"sidecar.istio.io/interceptionMode": "TPROXY"}, func(s *Spec) { s.Mode = TProxy }},
		{"mode none", map[string]string{"sidecar.istio.io/interceptionMode": "NONE"}, func(s *Spec) { s.Mode = None }},
		{"include all inbound", map[string]string{AnnotationIncludeInboundPorts: "*"}, func(s *Spec) { s.IncludeInboundPorts = AllPorts() }},
		{"include no inbound", map[string]string{AnnotationIncludeInboundPorts: ""}, func(s *Spec) { s.IncludeInboundPorts = OnlyPorts() }},
		{"include some inbound", map[string]string{AnnotationIncludeInboundPorts: "8080, 80,80"}, func(s *Spec) { s.IncludeInboundPorts = OnlyPorts(80, 8080) }},
		{"exclude inbound", map[string]string{AnnotationExcludeInboundPorts: "9000,15020,"}, func(s *Spec) { s.ExcludeInboundPorts = []uint16{9000, 15020} }},
		{"include all outbound", map[string]string{AnnotationIncludeOutboundCIDRs: "*"}, func(*Spec) {}},
		{"include no outbound", map[string]string{AnnotationIncludeOutboundCIDRs: ""}, func(s *Spec) { s.IncludeOutboundCIDRs = OnlyCIDRs() }},
		{"include some outbound", map[string]string{AnnotationIncludeOutboundCIDRs: "10.1.2.3/8,fd00::/8,10.9.0.0/16"}, func(s *Spec) { s.IncludeOutboundCIDRs = OnlyCIDRs(cidrs("10.0.0.0/8", "fd00::/8")...) }},
		{"exclude outbound", map[string]string{AnnotationExcludeOutboundCIDRs: "169.254.169.254/32"}, func(s *Spec) { s.ExcludeOutboundCIDRs = cidrs("169.254.169.254/32") }},
		{"include outbound ports", map[string]string{AnnotationIncludeOutboundPorts: "443"}, func(s *Spec) { s.IncludeOutboundPorts = []uint16{443} }},
		{"exclude outbound ports", map[string]string{AnnotationExcludeOutboundPorts: "25,587"}, func(s *Spec) { s.ExcludeOutboundPorts = []uint16{25, 587} }},
		{"an empty list replaces the mesh's", map[string]string{AnnotationExcludeOutboundPorts: ""}, func(s *Spec) { s.ExcludeOutboundPorts = nil }},
		{"exclude interfaces", map[string]string{AnnotationExcludeInterfaces: "net1,net2+"}, func(s *Spec) { s.ExcludeInterfaces = []string{"net1", "net2+"} }},
		{"reroute interfaces", map[string]string{AnnotationRerouteInterfaces: "k6t-eth0"}, func(s *Spec) { s.RerouteInterfaces = []string{"k6t-eth0"} }},
		{"the older name", map[string]string{AnnotationKubevirtInterfaces: "k6t-eth0"}, func(s *Spec) { s.RerouteInterfaces = []string{"k6t-eth0"} }},
		{"both names", map[string]string{AnnotationKubevirtInterfaces: "old0", AnnotationRerouteInterfaces: "new0"}, func(s *Spec) { s.RerouteInterfaces = []string{"new0"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := base.normalized()
			c.change(&want)
			got, err := FromAnnotations(base, c.pod)
			if err != nil {
				t.Fatal(err)
			}
			if got.Encode() != want.Encode() {
				t.Errorf("got  %s\nwant %s", got.Encode(), want.Encode())
			}
		})
	}
}

func TestAWrongAnnotationIsNamedWithItsValueAndARemedy(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{AnnotationInterceptionMode, "TPROXI", "want REDIRECT, TPROXY or NONE"},
		{AnnotationIncludeInboundPorts, "http", `"http" is not a port, want port numbers from 1 to 65535 with commas between them`},
		{AnnotationIncludeInboundPorts, "8080,*", `"*" is not a port`},
		{AnnotationExcludeInboundPorts, "*", `set traffic.sidecar.istio.io/includeInboundPorts: ""`},
		{AnnotationExcludeInboundPorts, "80 8080", `"80 8080" is not a port`},
		{AnnotationExcludeOutboundPorts, "65536", `"65536" is not a port`},
		{AnnotationIncludeOutboundPorts, "-1", `"-1" is not a port`},
		{AnnotationIncludeOutboundCIDRs, "10.0.0.0", `write 10.0.0.0/32 for this one address`},
		{AnnotationIncludeOutboundCIDRs, "fd00::1", `write fd00::1/128 for this one address`},
		{AnnotationExcludeOutboundCIDRs, "*", `"*" is not a CIDR range`},
		{AnnotationExcludeOutboundCIDRs, "10.0.0.0/33", `"10.0.0.0/33" is not a CIDR range`},
		{AnnotationExcludeOutboundCIDRs, "::ffff:10.0.0.0/104", `write it as IPv4`},
		{AnnotationExcludeInterfaces, "eth0;reboot now", `contains ' '`},
		{AnnotationExcludeInterfaces, "averylonginterfacename", "longer than 15 characters"},
		{AnnotationRerouteInterfaces, "+", "matches every interface"},
		{AnnotationKubevirtInterfaces, "a/b", "contains '/'"},
	} {
		_, err := FromAnnotations(Default(), map[string]string{c.name: c.value})
		if err == nil {
			t.Errorf("%s: %q is accepted", c.name, c.value)
			continue
		}
		for _, part := range []string{c.name, c.want, quote(c.value)} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q: error %q does not contain %q", c.name, c.value, err, part)
			}
		}
	}
	_, err := FromAnnotations(Default(), map[string]string{AnnotationExcludeInterfaces: "tap0", AnnotationRerouteInterfaces: "tap0"})
	if err == nil || !strings.Contains(err.Error(), `"tap0" is also in excludeInterfaces`) {
		t.Errorf("an interface in both lists: %v", err)
	}
	_, err = FromAnnotations(Default(), map[string]string{AnnotationExcludeInboundPorts: "x", AnnotationExcludeOutboundPorts: "y"})
	if err == nil || !strings.Contains(err.Error(), AnnotationExcludeInboundPorts) || !strings.Contains(err.Error(), AnnotationExcludeOutboundPorts) {
		t.Errorf("two wrong annotations: %v, want both named", err)
	}
}

func TestTheAnnotationCarriesEverySpecUnchanged(t *testing.T) {
	for name, s := range specs(t) {
		text := s.Encode()
		if strings.ContainsAny(text, "\n ") {
			t.Errorf("%s: %q is not one word", name, text)
		}
		back, err := Decode(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(back, s) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, back, s)
		}
	}
	if got, want := Default().Encode(), `{"mode":"REDIRECT","includeInboundPorts":"*","includeOutboundCIDRs":"*","proxyUIDs":[1337],"proxyGIDs":[1337],"ipv4":true,"ipv6":true}`; got != want {
		t.Errorf("the default is written %s, want %s: plugins of older releases must still read it", got, want)
	}
}

func TestAFieldThatIsLeftOutCapturesAsTheDefaultDoes(t *testing.T) {
	s, err := Decode(`{"mode":"TPROXY"}`)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Mode = TProxy
	if s.Encode() != want.Encode() {
		t.Errorf("got %s, want %s: a short annotation must not capture less", s.Encode(), want.Encode())
	}
}

func TestAWrongSpecIsRefusedWithItsField(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{``, "empty"},
		{`null`, "want a JSON object"},
		{`{"mode":"NONE",}`, "invalid character"},
		{`{} {}`, "text after the JSON object"},
		{`{}x`, "text after the JSON object"},
		{`[]`, "want a JSON object"},
		{`{"mode":"redirect"}`, `field mode: "redirect" is not an interception mode`},
		{`{"mode":""}`, `field mode: ""`},
		{`{"exclude":[]}`, `unknown field "exclude" (a misspelling, or the injector is newer than the CNI plugin of this node: upgrade weft-cni)`},
		{`{"includeInboundPorts":"8080"}`, `want "*" or an array, not "8080"`},
		{`{"includeInboundPorts":null}`, `want "*" or an array, not null`},
		{`{"includeInboundPorts":[70000]}`, "cannot unmarshal number 70000"},
		{`{"includeInboundPorts":[0]}`, "field includeInboundPorts: 0 is not a port"},
		{`{"excludeInboundPorts":[0]}`, "field excludeInboundPorts"},
		{`{"includeOutboundPorts":[0]}`, "field includeOutboundPorts"},
		{`{"excludeOutboundPorts":[0]}`, "field excludeOutboundPorts"},
		{`{"includeOutboundCIDRs":["10.0.0.0"]}`, "10.0.0.0"},
		{`{"includeOutboundCIDRs":[""]}`, "field includeOutboundCIDRs"},
		{`{"excludeOutboundCIDRs":["::ffff:1.2.3.4/120"]}`, "field excludeOutboundCIDRs"},
		{`{"excludeInterfaces":[""]}`, "an interface name is empty"},
		{`{"excludeInterfaces":["*"]}`, "matches every interface"},
		{`{"rerouteInterfaces":["a b"]}`, "field rerouteInterfaces"},
		{`{"proxyUIDs":[],"proxyGIDs":[]}`, "sent back to it for ever"},
		{`{"proxyUIDs":[0]}`, "every root process uncaptured"},
		{`{"proxyGIDs":[0]}`, "root's group uncaptured"},
		{`{"excludeUIDs":[4294967295]}`, "field excludeUIDs: 4294967295"},
		{`{"gate":15099}`, "field gate: 15099 is where the rules lead traffic to or from"},
		{`{"gate":15006}`, "want the proxy's health port, such as 15021, or 0"},
		{`{"gate":65536}`, "cannot unmarshal number 65536"},
		{`{"ipv4":false,"ipv6":false}`, "nothing would be captured"},
	} {
		_, err := Decode(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "annotation weft.dev/redirect") {
			t.Errorf("Decode(%s): %v, want an error with %q", c.text, err, c.want)
		}
	}
	long := `{"mode":"` + strings.Repeat("x", 100_000) + `"}`
	if _, err := Decode(long); err == nil || len(err.Error()) > 1000 {
		t.Errorf("a long value: error of %d bytes", len(err.Error()))
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{}`, Default().Encode(), `{"mode":"TPROXY","excludeInboundPorts":[1,2],"includeOutboundCIDRs":["10.0.0.0/8","fd00::/8"],"excludeInterfaces":["eth1+"]}`,
		`{"gate":15021}`, `{"mode":"TPROXY","gate":8021,"ipv6":false,"includeInboundPorts":[]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Decode(text)
		if err != nil {
			return
		}
		again, err := Decode(s.Encode())
		if err != nil || again.Encode() != s.Encode() {
			t.Fatalf("%q becomes %q, which becomes %q (%v)", text, s.Encode(), again.Encode(), err)
		}
		for _, b := range []Backend{nft{}, newIPTables()} {
			out, err := b.Text(s)
			if err != nil || strings.ContainsRune(out, '<') {
				t.Fatalf("%s: rules of %s: %v\n%s", b.Name(), s.Encode(), err, out)
			}
		}
	})
}

func FuzzFromAnnotations(f *testing.F) {
	f.Add(uint8(0), "TPROXY")
	f.Add(uint8(1), "*")
	f.Add(uint8(2), "80,443")
	f.Add(uint8(3), "10.0.0.0/8,fd00::/8")
	f.Add(uint8(7), "eth1,tap+")
	f.Fuzz(func(t *testing.T, which uint8, value string) {
		a := annotations[int(which)%len(annotations)]
		s, err := FromAnnotations(Default(), map[string]string{a.name: value})
		if err != nil {
			if !strings.Contains(err.Error(), a.name) && !strings.Contains(err.Error(), "field ") {
				t.Fatalf("%s: %q: error %q does not say where", a.name, value, err)
			}
			return
		}
		if _, err := Decode(s.Encode()); err != nil {
			t.Fatalf("%s: %q gives a Spec that its own annotation refuses: %v", a.name, value, err)
		}
	})
}
