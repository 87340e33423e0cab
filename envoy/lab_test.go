package envoy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/redirect"
)

// A lab is a pod and the world outside, as two network namespaces with a cable between them. In the pod runs a real
// Envoy as the sidecar's user; apps and clients are sockets of the test, opened in one namespace or the other.
type lab struct {
	t         *testing.T
	authority *identity.Authority
	pod       place
	outside   place

	privileged bool // Envoy runs as root, for TPROXY; its group is the sidecar's all the same
}

// A place is one network namespace.
type place struct {
	t      *testing.T
	ns     netns.NsHandle
	v4, v6 netip.Addr
}

func newLab(t *testing.T) *lab {
	t.Helper()
	kit.Root(t)
	authority, err := identity.Open(t.Context(), identity.Dir(filepath.Join(t.TempDir(), "ca")), "cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, authority: authority}
	l.pod = place{t: t, v4: netip.MustParseAddr("10.77.0.2"), v6: netip.MustParseAddr("fd77::2")}
	l.outside = place{t: t, v4: netip.MustParseAddr("10.77.0.1"), v6: netip.MustParseAddr("fd77::1")}
	for _, p := range []*place{&l.pod, &l.outside} {
		p.ns = newNamespace(t)
	}
	l.outside.in(func() error {
		cable := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: "eth0", MTU: 1500},
			PeerName:      "eth0",
			PeerNamespace: netlink.NsFd(l.pod.ns),
		}
		return netlink.LinkAdd(cable)
	})
	l.outside.up()
	l.pod.up()
	l.pod.routeVia(l.outside)
	l.outside.routeVia(l.pod)
	return l
}

func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	made := make(chan netns.NsHandle, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := netns.New()
		if err != nil {
			t.Errorf("new network namespace: %v", err)
		}
		made <- ns
	}()
	ns := <-made
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// in runs f on a thread inside the namespace.
func (p place) in(f func() error) {
	p.t.Helper()
	if err := p.try(f); err != nil {
		p.t.Fatal(err)
	}
}

func (p place) try(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, as above
		if err := netns.Set(p.ns); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// up gives the namespace its addresses.
func (p place) up() {
	p.t.Helper()
	p.in(func() error {
		for name, addresses := range map[string][]string{"lo": nil, "eth0": {p.v4.String() + "/24", p.v6.String() + "/64"}} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			for _, a := range addresses {
				addr, err := netlink.ParseAddr(a)
				if err != nil {
					return err
				}
				addr.Flags = syscall.IFA_F_NODAD
				if err := netlink.AddrAdd(link, addr); err != nil {
					return err
				}
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		return nil
	})
}

// routeVia sends what is for nobody on the cable to the other side, so that service addresses have a way at all.
func (p place) routeVia(other place) {
	p.t.Helper()
	p.in(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, gateway := range []netip.Addr{other.v4, other.v6} {
			all := netip.PrefixFrom(gateway, 0).Masked()
			dst := &net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, gateway.BitLen())}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: dst, Gw: gateway.AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	})
}

// listen opens a TCP socket in the namespace; it is closed with the test.
func (p place) listen(address string) net.Listener {
	p.t.Helper()
	var ln net.Listener
	p.in(func() (err error) {
		ln, err = net.Listen("tcp", address)
		return err
	})
	p.t.Cleanup(func() { ln.Close() })
	return ln
}

func (p place) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = p.try(func() error {
		conn, err = (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// client makes requests from the namespace, each on a connection of its own.
func (p place) client() *http.Client {
	return &http.Client{
		Timeout:       5 * time.Second,
		Transport:     &http.Transport{DialContext: p.dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get returns the status and body, or the reason why there is none.
func (p place) get(url string) string {
	res, err := p.client().Get(url)
	if err != nil {
		return connectionEnd(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return connectionEnd(err)
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", res.StatusCode, body))
}

// connectionEnd names the ways in which a connection fails that the tests tell apart.
func connectionEnd(err error) string {
	text := err.Error()
	for _, known := range []struct{ part, name string }{
		{"connection refused", "refused"},
		{"connection reset", "reset"},
		{"broken pipe", "reset"},
		{"EOF", "reset"},                                  // closed with nothing unread: the same to a user
		{"server closed idle connection", "reset"},        // closed even before the request was written
		{"client conn could not be established", "reset"}, // HTTP/2: closed before its preface was answered
		{"use of closed network connection", "reset"},     // net/http saw the end, and closed, while it was still writing
		{"certificate required", "certificate required"},
		{"signed by unknown authority", "unknown authority"},
		{"handshake failure", "handshake failure"},
		{"timeout", "timeout"},
		{"deadline", "timeout"},
		{"first record does not look like a TLS handshake", "not TLS"},
		{"server gave HTTP response to HTTPS client", "not TLS"},
	} {
		if strings.Contains(text, known.part) {
			return known.name
		}
	}
	return text
}

// redirect applies rules to the pod's namespace.
func (l *lab) redirect(spec redirect.Spec) { l.t.Helper(); l.pod.redirect(spec) }

func (p place) redirect(spec redirect.Spec) {
	p.t.Helper()
	backend, err := redirect.Open(redirect.NFTables)
	if err != nil {
		p.t.Fatal(err)
	}
	p.in(func() error { return backend.Apply(spec) })
}

// svid issues a certificate for a service account in namespace default.
func (l *lab) svid(serviceAccount string) *identity.SVID {
	l.t.Helper()
	svid, err := l.authority.Issue(identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: serviceAccount}, time.Hour)
	if err != nil {
		l.t.Fatal(err)
	}
	return svid
}

// secrets are the resources that weftd adds to a proxy's Sets.
func (l *lab) secrets(serviceAccount string) *Set {
	l.t.Helper()
	svid := l.svid(serviceAccount)
	inline := func(b []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	return newSet("secrets/"+serviceAccount, 1, nil, []*Resource{
		newResource(Secret, "default", &tlsv3.Secret{Name: "default", Type: &tlsv3.Secret_TlsCertificate{
			TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(svid.Chain), PrivateKey: inline(svid.Key)},
		}}),
		newResource(Secret, "ROOTCA", &tlsv3.Secret{Name: "ROOTCA", Type: &tlsv3.Secret_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(l.authority.Roots())},
		}}),
	})
}

// An envoy is a running Envoy.
type envoyProcess struct {
	t     *testing.T
	where place
	xds   *tinyXDS
	log   *os.File
}

// start runs Envoy as uid 1337 in a namespace, with the given Sets.
func (l *lab) start(where place, sets ...*Set) *envoyProcess {
	l.t.Helper()
	dir := l.openDir()
	x := serveXDS(l.t, filepath.Join(dir, "xds.sock"), sets)
	e := l.run(where, dir, "lab", "GRPC", "pipe: {path: "+x.path+"}")
	e.xds = x
	return e
}

// openDir is a directory that other users may read; t.TempDir is not.
func (l *lab) openDir() string {
	l.t.Helper()
	dir, err := os.MkdirTemp("", "envoy-lab")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

// run starts an Envoy with a node ID and its xDS server's protocol and address.
func (l *lab) run(where place, dir, node, protocol, server string) *envoyProcess {
	l.t.Helper()
	e := &envoyProcess{t: l.t, where: where}
	var err error
	if e.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		l.t.Fatal(err)
	}
	config := `
node: {id: "` + node + `", cluster: lab}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
dynamic_resources:
  ads_config: {api_type: ` + protocol + `, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds, retry_policy: {retry_back_off: {base_interval: 0.1s, max_interval: 0.5s}}}}]}
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 1s
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {` + server + `}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
`
	cmd := exec.Command(kit.Envoy(l.t), "--config-yaml", config, "--disable-hot-restart", "--concurrency", "1", "-l", "warning",
		"--drain-time-s", "1", "--drain-strategy", "immediate", "--file-flush-interval-msec", "50")
	cmd.Stdout, cmd.Stderr = e.log, e.log
	user := &syscall.Credential{Uid: redirect.ProxyUID, Gid: redirect.ProxyGID}
	if l.privileged {
		user.Uid = 0
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	where.in(cmd.Start) // a child is born in the namespace of the thread that made it
	l.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if l.t.Failed() {
			if b, err := os.ReadFile(e.log.Name()); err == nil {
				l.t.Logf("envoy:\n%s", b)
			}
		}
	})
	e.eventually("Envoy is ready", func() error {
		if got := where.get("http://127.0.0.1:15000/ready"); got != "200 LIVE" {
			return fmt.Errorf("admin says %q", got)
		}
		return nil
	})
	return e
}

// eventually waits until check succeeds, 30 s at most.
func (e *envoyProcess) eventually(what string, check func() error) {
	e.t.Helper()
	if err := poll(30*time.Second, check); err != nil {
		e.t.Fatalf("%s: never came true: %v", what, err)
	}
}

func poll(limit time.Duration, check func() error) error {
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-deadline:
			return err
		case <-tick.C:
		}
	}
}

// update replaces what the Envoy has, and waits until it has taken it.
func (e *envoyProcess) update(sets ...*Set) {
	e.t.Helper()
	version := e.xds.set(sets)
	e.eventually("Envoy takes the new configuration", func() error {
		if acked := e.xds.acked.Load(); acked < version {
			return fmt.Errorf("version %d of %d", acked, version)
		}
		return nil
	})
}

// tinyXDS serves Sets over state-of-the-world ADS to one Envoy: enough of a control plane to see what Envoy makes of
// our resources. A resource that Envoy refuses fails the test.
type tinyXDS struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	t    *testing.T
	path string

	mu      sync.Mutex
	sets    []*Set
	version int64
	changed chan struct{}
	acked   atomic.Int64 // the version of listeners in use
}

func serveXDS(t *testing.T, path string, sets []*Set) *tinyXDS {
	t.Helper()
	x := &tinyXDS{t: t, path: path, sets: sets, version: 1, changed: make(chan struct{})}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(s, x)
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(ln)
	}()
	t.Cleanup(func() { s.Stop(); <-served })
	return x
}

func (x *tinyXDS) set(sets []*Set) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sets = sets
	x.version++
	close(x.changed)
	x.changed = make(chan struct{})
	return x.version
}

func (x *tinyXDS) now() ([]*Set, int64, <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.sets, x.version, x.changed
}

func (x *tinyXDS) StreamAggregatedResources(stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	type subscription struct {
		names map[string]bool // nil: all
		sent  int64
	}
	requests := make(chan *discovery.DiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	var order []Type
	subscribed := map[Type]*subscription{}
	send := func(t Type) error {
		s := subscribed[t]
		sets, version, _ := x.now()
		s.sent = version
		out := &discovery.DiscoveryResponse{TypeUrl: t.TypeURL(), VersionInfo: fmt.Sprint(version), Nonce: fmt.Sprint(version)}
		for _, set := range sets {
			for _, r := range set.Resources[t] {
				if s.names == nil || s.names[r.Name] {
					out.Resources = append(out.Resources, &anypb.Any{TypeUrl: t.TypeURL(), Value: r.Body})
				}
			}
		}
		return stream.Send(out)
	}
	for {
		_, _, changed := x.now()
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
			for _, t := range order {
				if err := send(t); err != nil {
					return err
				}
			}
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			t, known := TypeOf(r.TypeUrl)
			if !known {
				x.t.Errorf("Envoy asks for %s", r.TypeUrl)
				continue
			}
			if e := r.GetErrorDetail(); e != nil {
				x.t.Errorf("Envoy refuses a %s: %s", t.TypeURL(), e.GetMessage())
			} else if t == Listener && r.ResponseNonce != "" {
				var v int64
				fmt.Sscan(r.VersionInfo, &v)
				x.acked.Store(v)
			}
			var names map[string]bool
			if len(r.ResourceNames) > 0 {
				names = map[string]bool{}
				for _, n := range r.ResourceNames {
					names[n] = true
				}
			}
			s := subscribed[t]
			if s == nil {
				s = &subscription{}
				subscribed[t] = s
				order = append(order, t)
			}
			_, version, _ := x.now()
			fresh := s.sent < version || len(names) != len(s.names)
			s.names = names
			if fresh {
				if err := send(t); err != nil {
					return err
				}
			}
		}
	}
}

// stat reads one of Envoy's counters or gauges.
func (e *envoyProcess) stat(name string) int {
	e.t.Helper()
	out := e.where.get("http://127.0.0.1:15000/stats?filter=^" + url.QueryEscape(regexp.QuoteMeta(name)) + "$")
	var n int
	if _, err := fmt.Sscanf(out, "200 "+name+": %d", &n); err != nil {
		e.t.Fatalf("stat %s: %q", name, out)
	}
	return n
}
