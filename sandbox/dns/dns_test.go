package dns

import (
	"context"
	"errors"
	"net/netip"
	"sort"
	"strings"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func ptr[T any](v T) *T { return &v }

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "default", Name: name} }

func zone() *Zone {
	endpoint := func(ip, host string, ready bool) discoveryv1.Endpoint {
		e := discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
		if host != "" {
			e.Hostname = &host
		}
		return e
	}
	slice := func(svc string, family discoveryv1.AddressType, eps ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		m := meta(svc + "-" + string(family))
		m.Labels = map[string]string{discoveryv1.LabelServiceName: svc}
		return &discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: family, Endpoints: eps,
			Ports: []discoveryv1.EndpointPort{{Name: ptr("tcp"), Port: ptr(int32(5432)), Protocol: ptr(corev1.ProtocolTCP)}}}
	}
	return NewZone("cluster.local", 7, Objects{
		Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, {ObjectMeta: metav1.ObjectMeta{Name: "empty"}}},
		Services: []*corev1.Service{
			{ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.5", ClusterIPs: []string{"10.96.0.5", "fd00:96::5"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: "TCP"}}}},
			{ObjectMeta: meta("v4"), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.6", ClusterIPs: []string{"10.96.0.6"}}},
			{ObjectMeta: meta("db"), Spec: corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Name: "tcp", Port: 5432, Protocol: "TCP"}}}},
			{ObjectMeta: meta("none"), Spec: corev1.ServiceSpec{ClusterIP: "None"}},
			{ObjectMeta: meta("inside"), Spec: corev1.ServiceSpec{Type: "ExternalName", ExternalName: "web.default.svc.cluster.local"}},
			{ObjectMeta: meta("outside"), Spec: corev1.ServiceSpec{Type: "ExternalName", ExternalName: "Example.com"}},
			{ObjectMeta: meta("loop"), Spec: corev1.ServiceSpec{Type: "ExternalName", ExternalName: "loop.default.svc.cluster.local"}},
		},
		Slices: []*discoveryv1.EndpointSlice{
			slice("db", "IPv4", endpoint("10.244.0.7", "db-0", true), endpoint("10.244.0.8", "db-1", false), endpoint("10.244.0.9", "", true)),
			slice("db", "IPv6", endpoint("fd00:244::7", "db-0", true)),
		},
		Pods: []*corev1.Pod{{ObjectMeta: meta("p"), Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.0.7"}, {IP: "fd00:244::7"}}}}},
	})
}

func ask(s *Server, name, qtype string) (rcode string, answers []string, m *dns.Msg) {
	q := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
	m = s.Answer(q)
	for _, rr := range m.Answer {
		answers = append(answers, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	sort.Strings(answers)
	return dns.RcodeToString[m.Rcode], answers, m
}

func TestNamesResolveAsInKubernetes(t *testing.T) {
	s := &Server{}
	s.Set(zone())
	for _, c := range []struct{ name, qtype, rcode, want string }{
		{"web.default.svc.cluster.local.", "A", "NOERROR", "10.96.0.5"},
		{"WEB.Default.svc.cluster.LOCAL.", "AAAA", "NOERROR", "fd00:96::5"},
		{"v4.default.svc.cluster.local.", "AAAA", "NOERROR", ""},
		{"nope.default.svc.cluster.local.", "A", "NXDOMAIN", ""},
		{"web.default.svc.cluster.local.cluster.local.", "A", "NXDOMAIN", ""},
		{"web.nope.svc.cluster.local.", "A", "NXDOMAIN", ""},
		{"default.svc.cluster.local.", "A", "NOERROR", ""},
		{"empty.svc.cluster.local.", "A", "NOERROR", ""},
		{"svc.cluster.local.", "A", "NOERROR", ""},
		{"db.default.svc.cluster.local.", "A", "NOERROR", "10.244.0.7 10.244.0.9"},
		{"db-0.db.default.svc.cluster.local.", "A", "NOERROR", "10.244.0.7"},
		{"db-0.db.default.svc.cluster.local.", "AAAA", "NOERROR", "fd00:244::7"},
		{"db-1.db.default.svc.cluster.local.", "A", "NXDOMAIN", ""}, // not ready
		{"10-244-0-9.db.default.svc.cluster.local.", "A", "NOERROR", "10.244.0.9"},
		{"none.default.svc.cluster.local.", "A", "NOERROR", ""},
		{"10-244-0-7.default.pod.cluster.local.", "A", "NOERROR", "10.244.0.7"},
		{"fd00-244--7.default.pod.cluster.local.", "AAAA", "NOERROR", "fd00:244::7"},
		{"10-244-0-99.default.pod.cluster.local.", "A", "NXDOMAIN", ""},
		{"_http._tcp.web.default.svc.cluster.local.", "SRV", "NOERROR", "0 100 80 web.default.svc.cluster.local."},
		{"_tcp._tcp.db.default.svc.cluster.local.", "SRV", "NOERROR", "0 100 5432 10-244-0-9.db.default.svc.cluster.local.|0 100 5432 db-0.db.default.svc.cluster.local."},
		{"5.0.96.10.in-addr.arpa.", "PTR", "NOERROR", "web.default.svc.cluster.local."},
		{"7.0.244.10.in-addr.arpa.", "PTR", "NOERROR", "db-0.db.default.svc.cluster.local."},
		{"inside.default.svc.cluster.local.", "A", "NOERROR", "10.96.0.5|web.default.svc.cluster.local."},
		{"outside.default.svc.cluster.local.", "CNAME", "NOERROR", "example.com."},
		{"outside.default.svc.cluster.local.", "A", "NOERROR", "example.com."},
		{"dns-version.cluster.local.", "TXT", "NOERROR", `"1.1.0"`},
		{"example.com.", "A", "NXDOMAIN", ""},
	} {
		rcode, answers, m := ask(s, c.name, c.qtype)
		got := strings.Join(answers, "|")
		if want := strings.ReplaceAll(c.want, " 10.244", "|10.244"); rcode != c.rcode || got != want {
			t.Errorf("%s %s: %s %q, want %s %q", c.qtype, c.name, rcode, got, c.rcode, want)
		}
		if len(m.Answer) == 0 && len(m.Ns) == 0 {
			t.Errorf("%s %s: a negative answer without SOA is not cached by resolvers", c.qtype, c.name)
		}
	}
}

func TestACircleOfExternalNamesEnds(t *testing.T) {
	s := &Server{}
	s.Set(zone())
	if _, answers, _ := ask(s, "loop.default.svc.cluster.local.", "A"); len(answers) == 0 || len(answers) > 20 {
		t.Errorf("%d records", len(answers))
	}
}

func TestNamesOutsideGoToTheHostsResolverIfThereIsOne(t *testing.T) {
	s := &Server{Upstream: func(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
		if q.Question[0].Name == "broken.com." {
			return nil, errors.New("no answer")
		}
		rr, err := dns.NewRR(q.Question[0].Name + " 60 A 192.0.2.1")
		if err != nil {
			return nil, err
		}
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{rr}
		return m, nil
	}}
	s.Set(zone())
	if rcode, got, _ := ask(s, "example.com.", "A"); rcode != "NOERROR" || strings.Join(got, "|") != "192.0.2.1" {
		t.Errorf("example.com: %s %v", rcode, got)
	}
	if _, got, _ := ask(s, "outside.default.svc.cluster.local.", "A"); strings.Join(got, "|") != "192.0.2.1|example.com." {
		t.Errorf("ExternalName to the outside: %v", got)
	}
	if rcode, _, _ := ask(s, "broken.com.", "A"); rcode != "SERVFAIL" {
		t.Errorf("an upstream that does not answer: %s", rcode)
	}
}

func TestUDPAndTCPAnswerAndBigAnswersAreTruncatedOnUDP(t *testing.T) {
	var eps []discoveryv1.Endpoint
	for i := range 100 {
		eps = append(eps, discoveryv1.Endpoint{Addresses: []string{netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}).String()}})
	}
	s := &Server{}
	s.Set(NewZone("cluster.local", 1, Objects{
		Services: []*corev1.Service{{ObjectMeta: meta("big"), Spec: corev1.ServiceSpec{ClusterIP: "None"}}},
		Slices:   []*discoveryv1.EndpointSlice{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "big"}}, Endpoints: eps}},
	}))
	// A port that is free on UDP and TCP alike: the system gives one for TCP first.
	addr := freePort(t)
	stop, err := s.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	q := new(dns.Msg).SetQuestion("big.default.svc.cluster.local.", dns.TypeA)
	udp, _, err := (&dns.Client{Net: "udp"}).Exchange(q, addr.String())
	if err != nil {
		t.Fatal(err)
	}
	tcp, _, err := (&dns.Client{Net: "tcp"}).Exchange(q, addr.String())
	if err != nil {
		t.Fatal(err)
	}
	if !udp.Truncated || len(udp.Answer) == 0 || len(udp.Answer) > 30 || tcp.Truncated || len(tcp.Answer) != 100 {
		t.Errorf("UDP: truncated %t, %d records; TCP: truncated %t, %d records", udp.Truncated, len(udp.Answer), tcp.Truncated, len(tcp.Answer))
	}
	if _, err := s.Listen(addr); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a taken port: %v", err)
	}
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	for port := uint16(20053); port < 20153; port++ {
		a := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
		s := &Server{}
		if stop, err := s.Listen(a); err == nil {
			stop()
			return a
		}
	}
	t.Fatal("no free port")
	return netip.AddrPort{}
}
