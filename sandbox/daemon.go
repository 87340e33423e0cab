package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/control"
	"github.com/weft-mesh/weft/sandbox/dns"
	"github.com/weft-mesh/weft/sandbox/pod"
	"github.com/weft-mesh/weft/sandbox/store"
	"github.com/weft-mesh/weft/sandbox/vip"
)

// Step is one line of the progress that "up" shows.
type Step struct {
	Name  string        `json:"name"`
	Took  time.Duration `json:"took"`
	Error string        `json:"error,omitempty"` // the sandbox could not come up
	Ready bool          `json:"ready,omitempty"` // the last step: everything runs
}

// controlPlaneUser is whom istiod runs as (system/mesh.yaml). It is not the
// proxies' 1337: the kernel counts inotify instances by user, and many sidecars must not take the control plane's.
const controlPlaneUser = 65532

// daemon is the inside of a running sandbox.
type daemon struct {
	dir      Dir
	options  Options
	plan     addresses
	log      *slog.Logger
	store    *store.Store
	api      *api.Server
	control  *control.Control
	runner   *pod.Runner
	network  *network
	started  time.Time
	rootMu   sync.Mutex
	root     []byte
	lasting  context.Context // ends with the daemon; streams outlive their requests
	stop     context.CancelFunc
	stopping sync.Once
	stopped  chan struct{} // closed when shutdown is complete
}

// RunDaemon is the sandbox's daemon: it must be started inside the node's
// network namespace (Up does that). It tells its progress as JSON lines, and
// returns after a shutdown request or when ctx ends, with all pods stopped. hostNS, which may be
// nil, is the host's network namespace, where names outside the cluster are resolved.
func RunDaemon(ctx context.Context, dir Dir, progress func(Step), hostNS *os.File, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &daemon{dir: dir, log: log, store: store.New(), started: time.Now(), stop: cancel, stopped: make(chan struct{})}
	at := time.Now()
	step := func(name string, err error) error {
		s := Step{Name: name, Took: time.Since(at)}
		at = time.Now()
		if err != nil {
			s.Error = err.Error()
		}
		progress(s)
		return err
	}
	if err := step("API server, DNS and service addresses", d.prepare(hostNS)); err != nil {
		return err
	}
	l, err := net.Listen("unix", dir.Socket())
	if err != nil {
		return step("control socket", err)
	}
	if err := os.Chmod(dir.Socket(), 0o600); err != nil {
		return step("control socket", err)
	}
	defer os.Remove(dir.Socket())

	var wg sync.WaitGroup
	failed := make(chan error, 8)
	background := func(name string, f func(context.Context) error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f(ctx); err != nil {
				failed <- fmt.Errorf("%s: %w", name, err)
				cancel()
			}
		}()
	}
	stopDNS, err := d.network.dns.Listen(withPort(d.plan.DNS, 53)...)
	if err != nil {
		return step("cluster DNS", err)
	}
	defer stopDNS()
	background("service addresses", d.network.Run)
	background("controllers", d.control.Run)
	mirror := &store.Mirror{Dir: dir.Objects(), Want: wantedByMesh, Quiet: 5 * time.Millisecond, Reader: controlPlaneUser}
	background("object files", func(ctx context.Context) error { return mirror.Run(ctx, d.store) })
	background("mesh root", d.watchRoot)
	background("control socket", func(ctx context.Context) error { return d.serve(ctx, l) })

	up := func() error {
		if err := d.applySystem(ctx, "node.yaml", nodeValues(d.plan)); err != nil {
			return step("node", err)
		}
		if d.options.WithoutMesh {
			return nil
		}
		values, err := meshValues(dir, d.options)
		if err != nil {
			return step("MeshConfig", err)
		}
		if err := d.applySystem(ctx, "mesh.yaml", values); err != nil {
			return step("control plane's manifests", err)
		}
		return step("control plane (istiod) ready", d.waitForMesh(ctx))
	}
	err = up()
	if err == nil {
		progress(Step{Name: "ready", Took: time.Since(d.started), Ready: true})
		<-ctx.Done()
	}
	cancel()
	wg.Wait()
	d.shutdown()
	close(d.stopped)
	select {
	case bad := <-failed:
		err = errors.Join(err, bad)
	default:
	}
	return errors.Join(err, vip.Remove())
}

func withPort(addrs []netip.Addr, port uint16) (out []netip.AddrPort) {
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}

// prepare builds everything that needs no running goroutine.
func (d *daemon) prepare(hostNS *os.File) error {
	var err error
	if d.options, err = d.dir.loadOptions(); err != nil {
		return err
	}
	d.plan = d.options.IPFamily.plan()
	if err := os.WriteFile(d.dir.PIDFile(), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	for _, dir := range []string{d.dir.CA(), d.dir.Learned()} { // what istiod keeps
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chown(dir, controlPlaneUser, controlPlaneUser); err != nil {
			return err
		}
	}
	minter, err := newTokens(d.store, d.dir.Keys())
	if err != nil {
		return fmt.Errorf("service-account key: %w", err)
	}
	list, err := conflist(d.dir, d.plan, d.options.WithoutCNI)
	if err != nil {
		return err
	}
	d.network = newNetwork(d.store, &dns.Server{Upstream: hostResolver(hostNS)}, d.plan, d.log)
	d.api = &api.Server{
		Store: d.store, Networks: d.plan.networks(), Reserved: d.plan.reserved(), Mesh: checkMesh,
		Webhook: &api.Webhook{Root: d.meshRoot},
	}
	d.control = &control.Control{API: d.api, Node: nodeName, Log: d.log, RootConfig: func() map[string]string {
		if pem := d.meshRoot(); pem != nil {
			return identity.RootConfigMap(pem)
		}
		return nil
	}}
	d.runner, err = pod.New(pod.Config{
		Root:   d.dir.Pods(),
		CNI:    pod.CNI{Conflist: list, Path: d.options.CNIBinDirs},
		Images: Images(d.options.Images),
		ConfigMap: func(ns, name string) (*corev1.ConfigMap, bool) {
			o := store.Get[*corev1.ConfigMap](d.store, "configmaps", ns, name)
			return o, o != nil
		},
		Secret: func(ns, name string) (*corev1.Secret, bool) {
			o := store.Get[*corev1.Secret](d.store, "secrets", ns, name)
			return o, o != nil
		},
		Token:  minter.Mint,
		DNS:    pod.DNS{Server: d.plan.DNS[0], Domain: clusterDomain},
		Node:   pod.Node{Name: nodeName, IP: d.plan.Node[0].Addr(), IPs: addrsOf(d.plan.Node)},
		Status: d.control.SetPodStatus,
		Event:  d.podEvent,
		Log:    d.log,
	})
	if err != nil {
		return err
	}
	d.control.Kubelet = d.runner
	return nil
}

// podEvent records what kubelet would, and explains the events that a user of the mesh could not.
func (d *daemon) podEvent(p *corev1.Pod, kind, reason, message string) {
	d.control.Event(p, kind, reason, message)
	if reason == "BackOff" && d.tooManyProxies(p) {
		d.control.Event(p, corev1.EventTypeWarning, "InotifyLimit",
			"this machine may be out of inotify instances, and Envoy crashes then: raise the limit with \"sysctl -w fs.inotify.max_user_instances=8192\"")
	}
	if reason == "Unhealthy" {
		if cause, text := d.whyUnhealthy(p, message); cause != "" {
			d.control.Event(p, corev1.EventTypeWarning, cause, text)
		}
	}
}

// whyUnhealthy finds what a failed probe of an injected pod does not tell: the proxy's probe goes to a port that only
// the redirection leads to Envoy, and where Envoy listens only once the control plane has configured it.
func (d *daemon) whyUnhealthy(p *corev1.Pod, message string) (reason, text string) {
	spec, err := redirect.Decode(p.Annotations[redirect.Annotation])
	ns, there := d.runner.NetNS(p.UID)
	if err != nil || !there {
		return "", ""
	}
	var drift []string
	if err := redirect.InNetNS(ns, func() error {
		backend, err := redirect.Open(redirect.Auto)
		if err != nil {
			return err
		}
		drift, err = backend.Verify(spec)
		return err
	}); err != nil {
		return "", ""
	}
	switch {
	case len(drift) > 0:
		return "NotRedirected", "the pod's traffic is not redirected to its proxy, so its containers are not started or not ready: " + strings.Join(drift[:min(len(drift), 3)], "; ") +
			" (weft-cni is missing from the CNI chain, or the rules were removed)"
	case strings.Contains(message, ":15099") && strings.Contains(message, "connection refused"):
		return "ProxyNotConfigured", "the rules are in place, but the proxy has no configuration yet: the control plane does not answer it; see the logs of its container istio-proxy"
	}
	return "", ""
}

// tooManyProxies says whether a crashing proxy may lack inotify instances.
func (d *daemon) tooManyProxies(p *corev1.Pod) bool {
	limit, ok := ProxyLimit()
	if !ok || !hasProxy(p) {
		return false
	}
	n := 0
	for _, other := range store.List[*corev1.Pod](d.store, "pods", "", nil) {
		if hasProxy(other) {
			n++
		}
	}
	return n > limit*3/4
}

func hasProxy(p *corev1.Pod) bool {
	for _, c := range append(append([]corev1.Container(nil), p.Spec.InitContainers...), p.Spec.Containers...) {
		if c.Name == "istio-proxy" {
			return true
		}
	}
	return false
}

func addrsOf(ps []netip.Prefix) (out []netip.Addr) {
	for _, p := range ps {
		out = append(out, p.Addr())
	}
	return out
}

// reserved are the first addresses of the service ranges: in Kubernetes they are the API server's.
func (a addresses) reserved() (out []netip.Addr) {
	for _, p := range a.Services {
		out = append(out, p.Masked().Addr(), p.Masked().Addr().Next())
	}
	return out
}

func (d *daemon) applySystem(ctx context.Context, file string, values map[string]string) error {
	docs, err := systemDocuments(file, values)
	if err != nil {
		return err
	}
	results, err := d.api.Apply(ctx, docs, api.ApplyOptions{})
	if err != nil {
		return err
	}
	var faults []error
	for _, r := range results {
		if r.Error != "" {
			faults = append(faults, errors.New(r.Error))
		}
	}
	if file == "node.yaml" {
		faults = append(faults, d.describeNode())
	}
	return errors.Join(faults...)
}

func (d *daemon) describeNode() error {
	_, err := d.store.Update(store.Key{Resource: "nodes", Name: nodeName}, func(o store.Object) error {
		n := o.(*corev1.Node)
		for _, p := range d.plan.Node {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: p.Addr().String()})
		}
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: nodeName})
		now := metav1.NewTime(time.Now().Truncate(time.Second))
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "SandboxReady", Message: "the sandbox runs", LastHeartbeatTime: now, LastTransitionTime: now}}
		n.Status.NodeInfo.OperatingSystem, n.Status.NodeInfo.KernelVersion = "linux", kernelRelease()
		n.Status.NodeInfo.ContainerRuntimeVersion = "weft-sandbox://1"
		n.Status.NodeInfo.KubeletVersion = "v1.36.0-weft-sandbox"
		return nil
	})
	return err
}

// waitForMesh waits until the control plane is ready and the mesh root is in every namespace. Its error says what the
// control plane last wrote, because that is what a user would look up next.
func (d *daemon) waitForMesh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	w := d.store.Watch(func(e store.Event) bool {
		return e.Key.Resource == "pods" || e.Key.Resource == "configmaps"
	})
	defer w.Stop()
	for {
		pods := store.List[*corev1.Pod](d.store, "pods", "istio-system", nil)
		ready := false
		for _, p := range pods {
			ready = ready || (p.Labels["app"] == "istiod" && control.Ready(p))
			if why := hopeless(p); why != "" {
				return fmt.Errorf("istiod does not start: %s%s", why, d.lastLines(p))
			}
		}
		if ready && d.meshRoot() != nil && store.Get[*corev1.ConfigMap](d.store, "configmaps", "default", control.RootConfigMap) != nil {
			d.network.Settle(ctx)
			return nil
		}
		if _, err := w.Next(ctx); err != nil {
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return errors.New("the sandbox was taken down meanwhile")
			}
			for _, p := range pods {
				return fmt.Errorf("istiod is not ready after 60 s%s", d.lastLines(p))
			}
			return errors.New("istiod's pod did not appear within 60 s")
		}
	}
}

// hopeless tells why a pod will not get ready by waiting.
func hopeless(p *corev1.Pod) string {
	for _, cs := range p.Status.ContainerStatuses {
		if w := cs.State.Waiting; w != nil {
			switch w.Reason {
			case "CrashLoopBackOff", "ImageNotMapped", "ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "ErrImageNeverPull", "InvalidImageName":
				return w.Reason + ": " + w.Message
			}
		}
	}
	return ""
}

// watchRoot copies the mesh root into every namespace as soon as the control plane has written it, and again when it changes.
func (d *daemon) watchRoot(ctx context.Context) error {
	file := d.dir.path("ca", identity.RootKey)
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	slow := false
	for {
		pem, err := os.ReadFile(file)
		if err == nil && len(pem) > 0 {
			d.rootMu.Lock()
			changed := string(d.root) != string(pem)
			d.root = pem
			d.rootMu.Unlock()
			if changed {
				d.control.RootChanged()
			}
			if !slow {
				// From here on only a rotation is waited for.
				slow = true
				tick.Reset(time.Second)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (d *daemon) meshRoot() []byte {
	d.rootMu.Lock()
	defer d.rootMu.Unlock()
	return d.root
}

// shutdown stops all pods at once: their processes get SIGTERM and a short time, for nobody waits for their answers any more.
func (d *daemon) shutdown() {
	d.stopping.Do(func() {
		const grace = 2 * time.Second
		ctx, cancel := context.WithTimeout(context.Background(), grace+8*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Add(1)
		go func() {
			defer wg.Done()
			d.control.Drain(grace)
		}()
		for _, p := range store.List[*corev1.Pod](d.store, "pods", "", nil) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				seconds := grace
				if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
					seconds = min(seconds, time.Duration(*g)*time.Second)
				}
				if err := d.runner.Stop(ctx, p.UID, seconds); err != nil && !errors.Is(err, pod.ErrNotFound) {
					d.log.Warn("stopping a pod", "pod", p.Namespace+"/"+p.Name, "err", err)
				}
			}()
		}
		wg.Wait()
	})
}

// wantedByMesh says which objects weftd reads.
func wantedByMesh(o store.Object) bool {
	k, ok := store.KindFor(o)
	if !ok {
		return false
	}
	if k.IsMesh() {
		return true
	}
	switch k.Plural {
	case "namespaces", "nodes", "services", "endpointslices", "pods":
		return true
	case "configmaps":
		return o.GetNamespace() == "istio-system" && o.GetName() == "istio"
	case "secrets":
		// Certificates of gateways may be anywhere; other Secrets are not weftd's business.
		s, ok := o.(*corev1.Secret)
		return ok && slices.ContainsFunc(mesh.CredentialKeys, func(key string) bool { return len(s.Data[key]) > 0 })
	}
	return false
}

func writeStep(enc *json.Encoder) func(Step) {
	return func(s Step) {
		// Nobody listens any more when "up" was interrupted; the daemon is ended by it then.
		_ = enc.Encode(s)
	}
}

// Daemon is the body of "weft sandbox daemon": file descriptor 3 takes the
// progress, 4 is the host's network namespace (see startDaemon).
func Daemon(ctx context.Context, dir string) error {
	d := Dir(dir)
	o, err := d.loadOptions()
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if o.Verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	pipe, hostNS := os.NewFile(3, "progress"), os.NewFile(4, "host network namespace")
	if pipe == nil || hostNS == nil {
		return errors.New("this verb is started by \"weft sandbox up\" only")
	}
	// Children must not hold the pipe open.
	syscall.CloseOnExec(3)
	syscall.CloseOnExec(4)
	defer hostNS.Close()
	abandoned := make(chan struct{})
	if o.Tethered {
		syscall.CloseOnExec(5)
		tether := os.NewFile(5, "tether")
		alone, cancel := context.WithCancel(ctx)
		defer cancel()
		ctx = alone
		go func() {
			_, _ = tether.Read(make([]byte, 1)) // only ever ends
			close(abandoned)
			cancel()
		}()
	}
	enc := json.NewEncoder(pipe)
	report := writeStep(enc)
	err = RunDaemon(ctx, d, func(s Step) {
		report(s)
		if s.Ready {
			pipe.Close()
		}
	}, hostNS, log)
	pipe.Close()
	select {
	case <-abandoned:
		// Nobody is left who would take the rest away.
		last, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return errors.Join(err, Clean(last, d))
	default:
	}
	return err
}

// lastLines quotes the end of a pod's log for an error message.
func (d *daemon) lastLines(p *corev1.Pod) string {
	var b bytes.Buffer
	n := int64(5)
	name, err := container(p, "")
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, previous := range []bool{false, true} {
		if err := d.runner.Logs(ctx, p.UID, name, pod.LogOptions{Tail: &n, Previous: previous}, &b); err == nil && b.Len() > 0 {
			return "; it wrote:\n  " + strings.ReplaceAll(strings.TrimSpace(b.String()), "\n", "\n  ")
		}
		b.Reset()
	}
	return ""
}

func pid() int { return os.Getpid() }

func ready(p *corev1.Pod) bool { return control.Ready(p) }
