package pod

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// hookTimeout bounds a lifecycle hook's HTTP request, which has no timeout of its own.
const hookTimeout = 30 * time.Second

// ask does what a probe says, once. Network probes are dialled from the network namespace of the calling program, the
// node, as kubelet does. out says why a probe failed; err says that it could not be done.
func (c *container) ask(ctx context.Context, in *instance, p *corev1.Probe) (ok bool, out string, err error) {
	timeout := seconds(p.TimeoutSeconds, 1)
	switch {
	case p.HTTPGet != nil:
		return c.askHTTP(ctx, p.HTTPGet, timeout)
	case p.TCPSocket != nil:
		return c.askTCP(ctx, p.TCPSocket, timeout)
	case p.GRPC != nil:
		return c.askGRPC(ctx, p.GRPC, timeout)
	case p.Exec != nil:
		return askExec(ctx, in, p.Exec, timeout)
	}
	return false, "", fmt.Errorf("missing probe handler for %s:%s", c.w.name(), c.spec.Name)
}

func askExec(ctx context.Context, in *instance, e *corev1.ExecAction, timeout time.Duration) (bool, string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out := limited{max: 10 << 10}
	code, err := in.exec(ctx, e.Command, nil, &out, &out)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return false, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(e.Command, " "), timeout), nil
	case err != nil:
		return false, "", err
	}
	return code == 0, out.String(), nil
}

// limited keeps the first max bytes.
type limited struct {
	bytes.Buffer
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(0, l.max-l.Len()))])
	return len(p), nil
}

func (c *container) askTCP(ctx context.Context, t *corev1.TCPSocketAction, timeout time.Duration) (bool, string, error) {
	port, err := c.port(t.Port)
	if err != nil {
		return false, "", err
	}
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, "tcp", net.JoinHostPort(c.host(t.Host), strconv.Itoa(port)))
	if err != nil {
		return false, err.Error(), nil
	}
	conn.Close()
	return true, "", nil
}

func (c *container) askHTTP(ctx context.Context, g *corev1.HTTPGetAction, timeout time.Duration) (bool, string, error) {
	code, err := c.get(ctx, g, timeout)
	var wrong *configError
	switch {
	case errors.As(err, &wrong):
		return false, "", err
	case err != nil:
		return false, err.Error(), nil
	case code < http.StatusOK || code >= http.StatusBadRequest:
		return false, fmt.Sprintf("HTTP probe failed with statuscode: %d", code), nil
	}
	return true, "", nil
}

// get makes the request of an HTTP probe or hook; a *configError is about the request itself.
func (c *container) get(ctx context.Context, g *corev1.HTTPGetAction, timeout time.Duration) (status int, err error) {
	if timeout == 0 {
		timeout = hookTimeout
	}
	port, err := c.port(g.Port)
	if err != nil {
		return 0, &configError{"InvalidPort", err}
	}
	scheme := strings.ToLower(string(g.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	// The path may carry a query, and kubelet takes one that does not parse for a plain path.
	u, err := url.Parse(g.Path)
	if err != nil {
		u = &url.URL{Path: g.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(c.host(g.Host), strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, &configError{"InvalidRequest", err}
	}
	req.Header.Set("User-Agent", "kube-probe/1.37")
	req.Header.Set("Accept", "*/*")
	for _, h := range g.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		if strings.EqualFold(h.Name, "User-Agent") || strings.EqualFold(h.Name, "Accept") {
			req.Header.Del(h.Name)
		}
		if h.Value != "" || !strings.EqualFold(h.Name, "Accept") {
			req.Header.Add(h.Name, h.Value)
		}
	}
	client := &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // Kubernetes API: HTTPS probes skip verification
			DisableKeepAlives: true,
			Proxy:             nil,
		},
		// A redirect to another host counts as success: the container did answer (kubelet: RedirectChecker(false)).
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 10<<10))
	return res.StatusCode, err
}

// askGRPC speaks the gRPC health protocol (grpc.health.v1.Health).
func (c *container) askGRPC(ctx context.Context, g *corev1.GRPCAction, timeout time.Duration) (bool, string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addr := net.JoinHostPort(c.host(""), strconv.Itoa(int(g.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithUserAgent("kube-probe/1.37"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return false, "", err
	}
	defer conn.Close()
	service := ""
	if g.Service != nil {
		service = *g.Service
	}
	res, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: service})
	if err != nil {
		switch s := status.Convert(err); s.Code() {
		case codes.Unimplemented:
			return false, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + s.Message(), nil
		case codes.DeadlineExceeded:
			return false, fmt.Sprintf("timeout: health rpc did not complete within %s", timeout), nil
		case codes.Unavailable:
			return false, fmt.Sprintf("error: failed to connect service %q: %s", addr, s.Message()), nil
		default:
			return false, fmt.Sprintf("error: health rpc probe failed: %v", err), nil
		}
	}
	if res.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return false, fmt.Sprintf("service unhealthy (responded with %q)", res.GetStatus()), nil
	}
	return true, "", nil
}

// host is what network probes dial when they name no host: the pod's first address.
func (c *container) host(named string) string {
	if named != "" {
		return named
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if len(c.w.ips) == 0 {
		return ""
	}
	return c.w.ips[0]
}

// port resolves a number or the name of one of the container's ports.
func (c *container) port(p intstr.IntOrString) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, named := range c.spec.Ports {
		if named.Name == p.StrVal {
			return int(named.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("container %s has no port named %q", c.spec.Name, p.StrVal)
}
