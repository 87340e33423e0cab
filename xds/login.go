package xds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/identity"
)

// login is who a stream belongs to, and what it may have.
type login struct {
	namespace string
	pod       string
	uid       string // empty when the caller only said who he is
	id        identity.ID
	expires   time.Time
	secrets   bool
	peer      string
	watchdog  *watchdog
}

func (l *login) name() string { return l.pod + "." + l.namespace }

// key tells pods apart that had the same name one after the other.
func (l *login) key() string {
	if l.uid != "" {
		return l.uid
	}
	return l.name()
}

// authenticate looks at the caller's token, before anything that he sends is read.
//
// With TLS a token is always needed. Without TLS a token is needed too, unless the
// caller is on this machine's loopback: he may then say which pod's configuration he
// wants to see, for debugging. Secrets are sent over TLS only.
func (s *Server) authenticate(ctx context.Context) (*login, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "the connection has no peer")
	}
	_, secure := p.AuthInfo.(credentials.TLSInfo)
	l := &login{peer: p.Addr.String(), watchdog: newWatchdog()}
	token, err := bearer(ctx)
	if err != nil {
		return nil, err
	}
	if token == "" {
		if !secure && loopback(p.Addr) {
			return l, nil
		}
		s.metrics.loginFailed()
		return nil, status.Error(codes.Unauthenticated, "no token: send the pod's service account token as authorization: Bearer TOKEN")
	}
	if s.config.Verifier == nil {
		s.metrics.loginFailed()
		return nil, status.Error(codes.Unauthenticated, "this control plane cannot check tokens: it was started without --jwks")
	}
	caller, err := s.config.Verifier.Verify(ctx, token)
	if err != nil {
		s.metrics.loginFailed()
		if errors.Is(err, identity.ErrKeys) {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	l.namespace, l.pod, l.uid, l.expires = caller.Namespace, caller.Pod, caller.PodUID, caller.Expires
	l.id = identity.ID{TrustDomain: s.config.TrustDomain, Namespace: caller.Namespace, ServiceAccount: caller.ServiceAccount}
	l.secrets = secure && s.config.Authority != nil
	return l, nil
}

// bearer takes the token out of the request's metadata; empty when there is none.
func bearer(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", status.Error(codes.Unauthenticated, "more than one authorization header")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "bearer") || strings.TrimSpace(token) == "" {
		return "", status.Error(codes.Unauthenticated, "the authorization header is not of the form: Bearer TOKEN")
	}
	return strings.TrimSpace(token), nil
}

func loopback(a net.Addr) bool {
	ap, err := netip.ParseAddrPort(a.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// claim takes the identity that a caller without a token says he has:
// "sidecar~IP~pod.namespace~..." (Istio's node ID).
func (l *login) claim(n *node) error {
	if l.pod != "" {
		return nil
	}
	parts := strings.Split(n.id, "~")
	if len(parts) == 4 {
		if i := strings.LastIndexByte(parts[2], '.'); i > 0 {
			l.pod, l.namespace = parts[2][:i], parts[2][i+1:]
			return nil
		}
	}
	return status.Error(codes.InvalidArgument, "node.id is not of the form sidecar~IP~POD.NAMESPACE~DOMAIN")
}

// errUnknownPod: the pod is not in the mesh's view of the cluster, not yet or not any more.
var errUnknownPod = errors.New("unknown pod")

// identify fills in proxy from what the cluster says about the pod.
func (l *login) identify(m Mesh, n *node, proxy *envoy.Proxy) error {
	w := m.Workload(l.namespace, l.pod)
	if w == nil || l.uid != "" && w.UID != "" && w.UID != l.uid {
		return status.Errorf(codes.PermissionDenied, "%s: %s/%s", errUnknownPod, l.namespace, l.pod)
	}
	if w == proxy.Workload {
		return nil // a Workload is immutable, and this one was looked at
	}
	account := l.id.ServiceAccount
	if l.uid == "" {
		account = w.ServiceAccount
	} else if w.ServiceAccount != "" && w.ServiceAccount != account {
		return status.Errorf(codes.PermissionDenied, "the token is for service account %s, but pod %s/%s runs as %s", account, l.namespace, l.pod, w.ServiceAccount)
	}
	*proxy = envoy.Proxy{
		Kind:           kind(w.Annotations),
		Namespace:      l.namespace,
		Pod:            l.pod,
		ServiceAccount: account,
		Workload:       w,
		Addresses:      n.addresses,
		Demand:         proxy.Demand,
		Inline:         proxy.Inline,
	}.Identified()
	return nil
}

// await waits until the pod is known: a proxy may be faster than the news of its pod.
func (s *Server) await(ctx context.Context, l *login, n *node, proxy *envoy.Proxy) (*publication, error) {
	patience := time.NewTimer(s.config.PodTimeout)
	defer patience.Stop()
	said := false
	for {
		p := s.current.Load()
		err := fmt.Errorf("the mesh is not loaded yet")
		if p.mesh != nil {
			if err = l.identify(p.mesh, n, proxy); err == nil {
				return p, nil
			}
		}
		if !said {
			said = true
			s.log.Info("a proxy waits until its pod is known", "proxy", l.name(), "reason", err)
		}
		select {
		case <-p.next:
		case <-patience.C:
			return nil, status.Errorf(codes.Unavailable, "pod %s/%s with this UID and service account did not become known within %s: %v", l.namespace, l.pod, s.config.PodTimeout, err)
		case <-s.stopping:
			return nil, errStopping
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// peerName is for logs, when nothing better is known yet.
func peerName(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return "unknown"
}
