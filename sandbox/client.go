package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/store"
)

// Client talks to the daemon of one sandbox.
type Client struct {
	dir  Dir
	http *http.Client
}

// NewClient makes a client; nothing is dialed before the first call.
func NewClient(d Dir) *Client {
	return &Client{dir: d, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSocket(ctx, d) },
	}}}
}

func dialSocket(ctx context.Context, d Dir) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", d.Socket())
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("the sandbox %q belongs to root: use sudo", d.Name())
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%w: %q is not running; start it with \"weft sandbox up%s\"", ErrNoSandbox, d.Name(), nameFlag(d))
	}
	return nil, fmt.Errorf("%w: %q does not answer (its daemon has died?); \"weft sandbox down%s\" removes what it left", ErrNoSandbox, d.Name(), nameFlag(d))
}

func nameFlag(d Dir) string {
	if d.Name() == "default" {
		return ""
	}
	return " --name " + d.Name()
}

func (c *Client) do(ctx context.Context, method, path string, q url.Values, contentType string, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "sandbox", Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			return nil, ue.Err
		}
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func readError(resp *http.Response) error {
	var st metav1.Status
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		return fmt.Errorf("the sandbox answered %s", resp.Status)
	}
	if st.Reason == "" {
		return errors.New(st.Message)
	}
	return &apierrors.StatusError{ErrStatus: st}
}

func (c *Client) json(ctx context.Context, method, path string, q url.Values, contentType string, body []byte, into any) error {
	resp, err := c.do(ctx, method, path, q, contentType, bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		_, err := io.Copy(io.Discard, resp.Body)
		return err
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// Status asks the daemon about itself.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.json(ctx, http.MethodGet, "/status", nil, "", nil, &s)
}

// Images is the map from images to programs.
func (c *Client) Images(ctx context.Context) (images map[string]string, err error) {
	return images, c.json(ctx, http.MethodGet, "/images", nil, "", nil, &images)
}

// MapImages adds to the map from images to programs; paths are absolute. Pods that wait for one of them start by themselves.
func (c *Client) MapImages(ctx context.Context, images map[string]string) error {
	body, err := json.Marshal(images)
	if err != nil {
		return err
	}
	return c.json(ctx, http.MethodPost, "/images", nil, "application/json", body, nil)
}

// Shutdown stops all pods and the daemon, and returns when they have ended.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.json(ctx, http.MethodPost, "/shutdown", nil, "", nil, nil)
}

// Apply sends documents; see api.Server.Apply.
func (c *Client) Apply(ctx context.Context, docs []api.Document, o api.ApplyOptions) (results []api.Result, err error) {
	body, err := json.Marshal(ApplyRequest{docs, o})
	if err != nil {
		return nil, err
	}
	return results, c.json(ctx, http.MethodPost, "/apply", nil, "application/json", body, &results)
}

// Query selects objects of one kind.
type Query struct {
	Kind      *store.Kind
	Namespace string // "" means all
	Name      string // "" means all that match the selector
	Selector  string
}

func (q Query) values() url.Values {
	v := url.Values{}
	for k, s := range map[string]string{"name": q.Name, "labelSelector": q.Selector} {
		if s != "" {
			v.Set(k, s)
		}
	}
	if q.Kind.Namespaced && q.Namespace != "" {
		v.Set("namespace", q.Namespace)
	}
	return v
}

// Get lists objects. A Name that does not exist is a NotFound error.
func (c *Client) Get(ctx context.Context, q Query) ([]store.Object, error) {
	var raw []json.RawMessage
	if err := c.json(ctx, http.MethodGet, "/objects/"+q.Kind.Resource(), q.values(), "", nil, &raw); err != nil {
		return nil, err
	}
	out := make([]store.Object, 0, len(raw))
	for _, r := range raw {
		o, err := store.Decode(r)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// Watch calls each with the objects that exist (as Added) and then with every
// change, until ctx ends or each returns an error, which it then returns.
func (c *Client) Watch(ctx context.Context, q Query, each func(store.EventType, store.Object) error) error {
	v := q.values()
	v.Set("watch", "true")
	resp, err := c.do(ctx, http.MethodGet, "/objects/"+q.Kind.Resource(), v, "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var e WatchEvent
		if err := dec.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("the sandbox has ended: %w", err)
		}
		o, err := store.Decode(e.Object)
		if err != nil {
			return err
		}
		if err := each(e.Type, o); err != nil {
			return err
		}
	}
}

func objectPath(k *store.Kind, name string) string {
	return "/objects/" + k.Resource() + "/" + name
}

func inNamespace(k *store.Kind, ns string) url.Values {
	v := url.Values{}
	if k.Namespaced {
		v.Set("namespace", ns)
	}
	return v
}

// Delete asks for an object's deletion and returns at once; grace in seconds, nil for the pod's own.
func (c *Client) Delete(ctx context.Context, k *store.Kind, ns, name string, grace *int64) error {
	v := inNamespace(k, ns)
	if grace != nil {
		v.Set("gracePeriodSeconds", strconv.FormatInt(*grace, 10))
	}
	return c.json(ctx, http.MethodDelete, objectPath(k, name), v, "", nil, nil)
}

// Patch changes an object and returns it.
func (c *Client) Patch(ctx context.Context, k *store.Kind, ns, name string, t types.PatchType, patch []byte) (store.Object, error) {
	var raw json.RawMessage
	if err := c.json(ctx, http.MethodPatch, objectPath(k, name), inNamespace(k, ns), string(t), patch, &raw); err != nil {
		return nil, err
	}
	return store.Decode(raw)
}

// LogQuery selects a container's log lines, as kubectl logs does.
type LogQuery struct {
	Container                    string
	Follow, Previous, Timestamps bool
	Tail                         int64 // negative: all
	Since                        time.Time
}

// Logs copies a container's log to w.
func (c *Client) Logs(ctx context.Context, ns, pod string, q LogQuery, w io.Writer) error {
	v := url.Values{"namespace": {ns}}
	for k, on := range map[string]bool{"follow": q.Follow, "previous": q.Previous, "timestamps": q.Timestamps} {
		if on {
			v.Set(k, "true")
		}
	}
	if q.Container != "" {
		v.Set("container", q.Container)
	}
	if q.Tail >= 0 {
		v.Set("tailLines", strconv.FormatInt(q.Tail, 10))
	}
	if !q.Since.IsZero() {
		v.Set("sinceTime", q.Since.Format(time.RFC3339Nano))
	}
	resp, err := c.do(ctx, http.MethodGet, "/logs/"+pod, v, "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// stream opens a two-way stream to the daemon.
func (c *Client) stream(ctx context.Context, path string, q url.Values) (*net.UnixConn, *bufio.Reader, error) {
	conn, err := dialSocket(ctx, c.dir)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sandbox"+path+"?"+q.Encode(), nil)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "weft-stream")
	if err := req.Write(conn); err != nil {
		conn.Close()
		return nil, nil, err
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer conn.Close()
		return nil, nil, readError(resp)
	}
	return conn.(*net.UnixConn), br, nil
}

// Exec runs a command in a container and returns its exit status. stdin may be nil.
func (c *Client) Exec(ctx context.Context, ns, pod, container string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	q := url.Values{"namespace": {ns}, "command": argv}
	if container != "" {
		q.Set("container", container)
	}
	if stdin != nil {
		q.Set("stdin", "true")
	}
	conn, in, err := c.stream(ctx, "/exec/"+pod, q)
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if stdin != nil {
		go func() {
			_, _ = io.Copy(conn, stdin) // the command may end without reading its input
			_ = conn.CloseWrite()
		}()
	}
	var head [5]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			if ctx.Err() != nil {
				return -1, ctx.Err()
			}
			return -1, fmt.Errorf("the sandbox has ended: %w", err)
		}
		data := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(in, data); err != nil {
			return -1, err
		}
		switch head[0] {
		case frameStdout:
			_, err = stdout.Write(data)
		case frameStderr:
			_, err = stderr.Write(data)
		case frameExit:
			var e exit
			if err := json.Unmarshal(data, &e); err != nil {
				return -1, err
			}
			if e.Error != "" {
				return -1, errors.New(e.Error)
			}
			return e.Code, nil
		}
		if err != nil {
			return -1, err
		}
	}
}

// Dial connects to a port on a pod's loopback interface.
func (c *Client) Dial(ctx context.Context, ns, pod string, port uint16) (net.Conn, error) {
	conn, in, err := c.stream(ctx, "/forward/"+pod, url.Values{"namespace": {ns}, "port": {strconv.Itoa(int(port))}})
	if err != nil {
		return nil, err
	}
	return &bufferedConn{conn, in}, nil
}

type bufferedConn struct {
	*net.UnixConn
	in *bufio.Reader
}

func (b *bufferedConn) Read(p []byte) (int, error) { return b.in.Read(p) }

// Forward serves connections of l by a pod's port until l is closed. failed is told about connections that could not be made.
func (c *Client) Forward(ctx context.Context, l net.Listener, ns, pod string, port uint16, failed func(error)) error {
	for {
		in, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		go func() {
			defer in.Close()
			out, err := c.Dial(ctx, ns, pod, port)
			if err != nil {
				failed(err)
				return
			}
			defer out.Close()
			defer context.AfterFunc(ctx, func() { in.Close(); out.Close() })()
			splice(in, in, out)
		}()
	}
}
