package sandbox

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/pod"
	"github.com/weft-mesh/weft/sandbox/store"
)

// ApplyRequest is the body of POST /apply.
type ApplyRequest struct {
	Documents []api.Document   `json:"documents"`
	Options   api.ApplyOptions `json:"options"`
}

// WatchEvent is one line of a watch, as in the Kubernetes API.
type WatchEvent struct {
	Type   store.EventType `json:"type"`
	Object json.RawMessage `json:"object"`
}

// Status is what "weft sandbox status" shows.
type Status struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	NetNS   string    `json:"netns"`
	State   string    `json:"state"`
	DNS     string    `json:"dns"`
	Options Options   `json:"options"`
	Pods    int       `json:"pods"`
	Ready   int       `json:"ready"`
}

// serve answers on the control socket until the sandbox has been taken down.
func (d *daemon) serve(ctx context.Context, l net.Listener) error {
	d.lasting = ctx
	mux := http.NewServeMux()
	handle := func(pattern string, f func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				writeError(w, err)
			}
		})
	}
	handle("GET /status", d.getStatus)
	handle("POST /apply", d.postApply)
	handle("GET /objects/{resource}", d.getObjects)
	handle("DELETE /objects/{resource}/{name}", d.deleteObject)
	handle("PATCH /objects/{resource}/{name}", d.patchObject)
	handle("GET /logs/{name}", d.getLogs)
	handle("POST /exec/{name}", d.postExec)
	handle("POST /forward/{name}", d.postForward)
	handle("GET /images", func(w http.ResponseWriter, _ *http.Request) error { return writeJSON(w, d.runner.Images()) })
	handle("POST /images", d.postImages)
	handle("POST /shutdown", func(w http.ResponseWriter, r *http.Request) error {
		d.stop()
		<-d.stopped
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
	srv := &http.Server{Handler: mux, BaseContext: func(net.Listener) context.Context { return ctx }}
	go func() {
		// Requests in flight end with ctx, except the shutdown request itself, which gets its answer first.
		<-ctx.Done()
		<-d.stopped
		last, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = srv.Shutdown(last)
	}()
	go func() {
		if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("control socket", "err", err)
			d.stop()
		}
	}()
	<-ctx.Done()
	return nil
}

func writeError(w http.ResponseWriter, err error) {
	var st apierrors.APIStatus
	status := metav1.Status{Status: metav1.StatusFailure, Message: err.Error(), Code: http.StatusBadRequest}
	if errors.As(err, &st) {
		status = st.Status()
	}
	if status.Code == 0 {
		status.Code = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(status.Code))
	_ = json.NewEncoder(w).Encode(status) // the client has gone
}

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

// postImages maps more images, or others. What is wrong with one keeps none from being mapped.
func (d *daemon) postImages(w http.ResponseWriter, r *http.Request) error {
	var images map[string]string
	if err := json.NewDecoder(r.Body).Decode(&images); err != nil {
		return err
	}
	var faults []error
	for image, path := range images {
		faults = append(faults, d.runner.Map(image, path))
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *daemon) getStatus(w http.ResponseWriter, _ *http.Request) error {
	s := Status{Name: d.dir.Name(), PID: pid(), Started: d.started, NetNS: d.dir.NetNS(), State: string(d.dir), DNS: d.plan.DNS[0].String(), Options: d.options}
	for _, p := range store.List[*corev1.Pod](d.store, "pods", "", nil) {
		s.Pods++
		if ready(p) {
			s.Ready++
		}
	}
	return writeJSON(w, s)
}

func (d *daemon) postApply(w http.ResponseWriter, r *http.Request) error {
	var req ApplyRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return err
	}
	results, err := d.api.Apply(r.Context(), req.Documents, req.Options)
	if err != nil {
		return err
	}
	return writeJSON(w, results)
}

// key reads the kind, namespace and name of a request.
func (d *daemon) key(r *http.Request) (store.Key, *store.Kind, error) {
	kind, ok := store.Resource(r.PathValue("resource"))
	if !ok {
		return store.Key{}, nil, fmt.Errorf("a sandbox has no resource type %q", r.PathValue("resource"))
	}
	k := store.Key{Resource: kind.Resource(), Name: r.PathValue("name")}
	if kind.Namespaced {
		k.Namespace = r.URL.Query().Get("namespace")
	}
	return k, kind, nil
}

func (d *daemon) getObjects(w http.ResponseWriter, r *http.Request) error {
	k, _, err := d.key(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	sel, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		return err
	}
	name := q.Get("name")
	match := func(o store.Object) bool {
		return (k.Namespace == "" || o.GetNamespace() == k.Namespace) && (name == "" || o.GetName() == name) && sel.Matches(labels.Set(o.GetLabels()))
	}
	if q.Get("watch") == "" {
		if name != "" {
			o := d.store.Get(store.Key{Resource: k.Resource, Namespace: k.Namespace, Name: name})
			if o == nil {
				return store.NotFound(store.Key{Resource: k.Resource, Name: name})
			}
			return writeJSON(w, []store.Object{o})
		}
		return writeJSON(w, append([]store.Object{}, d.store.List(k.Resource, k.Namespace, sel)...))
	}
	watch := d.store.Watch(func(e store.Event) bool {
		return e.Key.Resource == k.Resource && (match(e.Object) || (e.Old != nil && match(e.Old)))
	})
	defer watch.Stop()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	for {
		if err := flush.Flush(); err != nil {
			return nil
		}
		batch, err := watch.Next(r.Context())
		if err != nil {
			return nil
		}
		for _, e := range batch {
			b, err := json.Marshal(e.Object)
			if err != nil {
				return err
			}
			t := e.Type
			switch {
			case t == store.Modified && !match(e.Object):
				t = store.Deleted // it left the selection
			case t == store.Modified && e.Old != nil && !match(e.Old):
				t = store.Added
			}
			if err := enc.Encode(WatchEvent{t, b}); err != nil {
				return nil
			}
		}
	}
}

func (d *daemon) deleteObject(w http.ResponseWriter, r *http.Request) error {
	k, _, err := d.key(r)
	if err != nil {
		return err
	}
	var grace *int64
	if g := r.URL.Query().Get("gracePeriodSeconds"); g != "" {
		n, err := strconv.ParseInt(g, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("gracePeriodSeconds=%s is not a number of seconds", g)
		}
		grace = &n
	}
	o, err := d.api.Delete(k, grace)
	if err != nil {
		return err
	}
	return writeJSON(w, o)
}

func (d *daemon) patchObject(w http.ResponseWriter, r *http.Request) error {
	k, _, err := d.key(r)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 8<<20))
	if err != nil {
		return err
	}
	o, err := d.api.Patch(k, types.PatchType(r.Header.Get("Content-Type")), body)
	if err != nil {
		return err
	}
	return writeJSON(w, o)
}

func (d *daemon) pod(r *http.Request) (*corev1.Pod, error) {
	ns := r.URL.Query().Get("namespace")
	p := store.Get[*corev1.Pod](d.store, "pods", ns, r.PathValue("name"))
	if p == nil {
		return nil, store.NotFound(store.Key{Resource: "pods", Name: r.PathValue("name")})
	}
	return p, nil
}

// container picks the container a verb is about (kubectl: the annotation
// kubectl.kubernetes.io/default-container, else the first).
func container(p *corev1.Pod, name string) (string, error) {
	var all []string
	for _, c := range append(append([]corev1.Container(nil), p.Spec.InitContainers...), p.Spec.Containers...) {
		if c.Name == name {
			return name, nil
		}
		all = append(all, c.Name)
	}
	if name != "" {
		return "", fmt.Errorf("container %s is not valid for pod %s; it has: %s", name, p.Name, strings.Join(all, ", "))
	}
	if c := p.Annotations["kubectl.kubernetes.io/default-container"]; c != "" {
		return container(p, c)
	}
	return p.Spec.Containers[0].Name, nil
}

func (d *daemon) getLogs(w http.ResponseWriter, r *http.Request) error {
	p, err := d.pod(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	name, err := container(p, q.Get("container"))
	if err != nil {
		return err
	}
	o := pod.LogOptions{Follow: q.Get("follow") != "", Previous: q.Get("previous") != "", Timestamps: q.Get("timestamps") != ""}
	if t := q.Get("tailLines"); t != "" {
		n, err := strconv.ParseInt(t, 10, 64)
		if err != nil {
			return fmt.Errorf("tailLines=%s is not a number", t)
		}
		if n >= 0 {
			o.Tail = &n
		}
	}
	if s := q.Get("sinceTime"); s != "" {
		if o.Since, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return err
		}
	}
	out := &flushing{w: w, flush: http.NewResponseController(w)}
	err = d.runner.Logs(r.Context(), p.UID, name, o, out)
	if err != nil && out.wrote {
		return nil // the status line has gone out; the stream just ends
	}
	return err
}

type flushing struct {
	w     io.Writer
	flush *http.ResponseController
	wrote bool
}

func (f *flushing) Write(b []byte) (int, error) {
	f.wrote = true
	n, err := f.w.Write(b)
	if err == nil {
		err = f.flush.Flush()
	}
	return n, err
}

// hijack turns a request into a plain two-way stream.
func hijack(w http.ResponseWriter) (net.Conn, io.Reader, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: weft-stream\r\n\r\n"); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, rw.Reader, nil
}

// Frames of an exec stream, daemon to client: one byte kind, four bytes length, data.
const (
	frameStdout byte = iota + 1
	frameStderr
	frameExit // data: {"code": n} or {"error": "..."}
)

type exit struct {
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
}

type frames struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frames) send(kind byte, b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var head [5]byte
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(b)))
	if _, err := f.w.Write(head[:]); err != nil {
		return err
	}
	_, err := f.w.Write(b)
	return err
}

type frameWriter struct {
	to   *frames
	kind byte
}

func (f frameWriter) Write(b []byte) (int, error) {
	return len(b), f.to.send(f.kind, b)
}

func (d *daemon) postExec(w http.ResponseWriter, r *http.Request) error {
	p, err := d.pod(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	name, err := container(p, q.Get("container"))
	if err != nil {
		return err
	}
	argv := q["command"]
	if len(argv) == 0 {
		return errors.New("no command given")
	}
	// Not the request's context: that ends when the client has sent all its input.
	ctx, cancel := context.WithCancel(d.lasting)
	defer cancel()
	conn, in, err := hijack(w)
	if err != nil {
		return err
	}
	defer conn.Close()
	var stdin io.Reader
	if q.Get("stdin") != "" {
		stdin = in
	} else {
		go func() {
			// The client's end is noticed by this read.
			_, _ = io.Copy(io.Discard, in)
			cancel()
		}()
	}
	out := &frames{w: conn}
	code, err := d.runner.Exec(ctx, p.UID, name, argv, stdin, frameWriter{out, frameStdout}, frameWriter{out, frameStderr})
	e := exit{Code: code}
	if err != nil {
		e.Error = err.Error()
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil
	}
	_ = out.send(frameExit, b) // the client has gone
	return nil
}

// postForward connects the request to a port on the pod's loopback, as kubectl port-forward does.
func (d *daemon) postForward(w http.ResponseWriter, r *http.Request) error {
	p, err := d.pod(r)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("%q is not a port", r.URL.Query().Get("port"))
	}
	target, err := d.dialPod(d.lasting, p, uint16(port))
	if err != nil {
		return apierrors.NewServiceUnavailable(err.Error())
	}
	defer target.Close()
	conn, in, err := hijack(w)
	if err != nil {
		return err
	}
	defer conn.Close()
	splice(conn, in, target)
	return nil
}

func (d *daemon) dialPod(ctx context.Context, p *corev1.Pod, port uint16) (conn net.Conn, err error) {
	dial := func() error {
		// "localhost" as kubectl means it: IPv4 first, then IPv6.
		for _, host := range []string{"127.0.0.1", "::1"} {
			if conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port)))); err == nil {
				return nil
			}
		}
		return err
	}
	path, ok := d.runner.NetNS(p.UID)
	switch {
	case ok:
		err = inNetNS(path, dial)
	case p.Spec.HostNetwork:
		err = dial()
	default:
		err = errors.New("the pod has no network")
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s, port %d: %w", p.Name, port, err)
	}
	return conn, nil
}

// splice copies both ways and passes on half-closes, until both sides have ended.
func splice(a net.Conn, fromA io.Reader, b net.Conn) {
	var wg sync.WaitGroup
	wg.Add(2)
	one := func(dst net.Conn, src io.Reader) {
		defer wg.Done()
		_, err := io.Copy(dst, src)
		if h, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			_ = h.CloseWrite() // the other side has gone already
			return
		}
		dst.Close()
	}
	go one(b, fromA)
	go one(a, b)
	wg.Wait()
}
