package dns

import (
	"net/netip"
	"sort"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// ttl of every record, in seconds: short, because pods come and go (CoreDNS: 5; kube-dns: 30).
const ttl = 5

// Zone is everything under the cluster domain at one moment, and the reverse records of its addresses.
type Zone struct {
	domain  string                         // "cluster.local."
	records map[string]map[uint16][]dns.RR // by lower-case FQDN and type
	exists  map[string]bool                // names with something below them, and names with records
	soa     dns.RR
}

// Objects is what a zone is made of.
type Objects struct {
	Namespaces []*corev1.Namespace
	Services   []*corev1.Service
	Slices     []*discoveryv1.EndpointSlice
	Pods       []*corev1.Pod
}

// NewZone builds the records of a cluster domain ("cluster.local"). serial goes into the SOA record.
func NewZone(domain string, serial uint32, o Objects) *Zone {
	z := &Zone{domain: dns.Fqdn(strings.ToLower(domain)), records: map[string]map[uint16][]dns.RR{}, exists: map[string]bool{}}
	z.soa = &dns.SOA{
		Hdr: header(z.domain, dns.TypeSOA), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
	z.add(z.soa)
	z.add(&dns.NS{Hdr: header(z.domain, dns.TypeNS), Ns: "ns.dns." + z.domain})
	z.add(&dns.TXT{Hdr: header("dns-version."+z.domain, dns.TypeTXT), Txt: []string{"1.1.0"}})
	for _, n := range o.Namespaces {
		z.touch(n.Name + ".svc." + z.domain)
		z.touch(n.Name + ".pod." + z.domain)
	}
	slices := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range o.Slices {
		k := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		slices[k] = append(slices[k], s)
	}
	for _, s := range o.Services {
		z.service(s, slices[s.Namespace+"/"+s.Name])
	}
	for _, p := range o.Pods {
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				z.address(dashed(a)+"."+p.Namespace+".pod."+z.domain, a)
			}
		}
	}
	return z
}

func (z *Zone) service(s *corev1.Service, slices []*discoveryv1.EndpointSlice) {
	name := s.Name + "." + s.Namespace + ".svc." + z.domain
	z.touch(name)
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		z.add(&dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: dns.Fqdn(strings.ToLower(s.Spec.ExternalName))})
	case s.Spec.ClusterIP == corev1.ClusterIPNone:
		z.headless(s, name, slices)
	default:
		for _, ip := range s.Spec.ClusterIPs {
			a, err := netip.ParseAddr(ip)
			if err != nil {
				continue
			}
			z.address(name, a)
			z.reverse(a, name)
		}
		for _, p := range s.Spec.Ports {
			z.srv(name, p.Name, p.Protocol, uint16(p.Port), name)
		}
	}
}

func (z *Zone) headless(s *corev1.Service, name string, slices []*discoveryv1.EndpointSlice) {
	for _, slice := range slices {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, ip := range e.Addresses {
				a, err := netip.ParseAddr(ip)
				if err != nil {
					continue
				}
				host := dashed(a)
				if e.Hostname != nil {
					host = *e.Hostname
				}
				target := host + "." + name
				z.address(name, a)
				z.address(target, a)
				z.reverse(a, target)
				for _, p := range slice.Ports {
					if p.Port != nil {
						z.srv(name, deref(p.Name), *p.Protocol, uint16(*p.Port), target)
					}
				}
			}
		}
	}
}

func (z *Zone) srv(name, port string, proto corev1.Protocol, number uint16, target string) {
	rr := func(owner string) {
		z.add(&dns.SRV{Hdr: header(owner, dns.TypeSRV), Weight: 100, Port: number, Target: target})
	}
	if port != "" {
		rr("_" + port + "._" + strings.ToLower(string(proto)) + "." + name)
	}
	rr(name)
}

func (z *Zone) address(name string, a netip.Addr) {
	if a.Is4() {
		z.add(&dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
	} else {
		z.add(&dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()})
	}
}

func (z *Zone) reverse(a netip.Addr, target string) {
	name, err := dns.ReverseAddr(a.String())
	if err == nil {
		z.add(&dns.PTR{Hdr: header(name, dns.TypePTR), Ptr: target})
	}
}

func (z *Zone) add(rr dns.RR) {
	h := rr.Header()
	h.Name = strings.ToLower(h.Name)
	byType := z.records[h.Name]
	if byType == nil {
		byType = map[uint16][]dns.RR{}
		z.records[h.Name] = byType
	}
	for _, have := range byType[h.Rrtype] {
		if dns.IsDuplicate(have, rr) {
			return
		}
	}
	byType[h.Rrtype] = append(byType[h.Rrtype], rr)
	z.touch(h.Name)
}

// touch makes a name and all names above it exist: they answer "no data" instead of "no such name" (RFC 8020).
func (z *Zone) touch(name string) {
	for name != "" && name != z.domain && !z.exists[name] {
		z.exists[name] = true
		_, name, _ = strings.Cut(name, ".")
	}
	z.exists[z.domain] = true
}

// owns reports whether the zone is the authority for a name.
func (z *Zone) owns(name string) bool {
	return dns.IsSubDomain(z.domain, name) || len(z.records[name]) > 0
}

// lookup returns records, or none and whether the name exists at all.
func (z *Zone) lookup(name string, qtype uint16) (answer []dns.RR, exists bool) {
	byType := z.records[name]
	if qtype == dns.TypeANY {
		for _, rrs := range byType {
			answer = append(answer, rrs...)
		}
		sort.Slice(answer, func(i, j int) bool { return answer[i].String() < answer[j].String() })
		return answer, z.exists[name]
	}
	if rrs := byType[qtype]; len(rrs) > 0 {
		return rrs, true
	}
	return byType[dns.TypeCNAME], z.exists[name]
}

func header(name string, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
}

// dashed writes an address as one DNS label: "10-244-0-7".
func dashed(a netip.Addr) string {
	s := strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
	if strings.HasPrefix(s, "-") {
		s = "0" + s
	}
	if strings.HasSuffix(s, "-") {
		s += "0"
	}
	return s
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
