package pod

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Config is everything a Runner needs to know from outside.
type Config struct {
	// Root is the runner's state directory, created when absent. Network namespaces are bind-mounted under
	// Root/netns, volumes and logs of a pod live under Root/pods/<uid>.
	Root string

	// CNI is the chain that connects every pod that is not on the host's network.
	CNI CNI

	// Images maps an image reference to the absolute path of a program of this host. A key is a reference with tag
	// or digest, a reference without (any tag), or a prefix followed by "*". The exact key wins over the one without
	// tag, that over the longest prefix. "envoyproxy/envoy" and "docker.io/envoyproxy/envoy" are the same image.
	Images map[string]string

	// ConfigMap and Secret answer from the caller's store; false means "not found". Nil means that none exist.
	// The objects are only read.
	ConfigMap func(namespace, name string) (*corev1.ConfigMap, bool)
	Secret    func(namespace, name string) (*corev1.Secret, bool)

	// Token mints a service-account token bound to the pod, as the API server's TokenRequest does. An empty audience
	// means the API server's own. It is called again when 80 % of the token's life has passed.
	Token func(ctx context.Context, pod *corev1.Pod, audience string, ttl time.Duration) (token string, expires time.Time, err error)

	DNS  DNS
	Node Node

	// Status is told each change of a pod's status, in order and never concurrently for one pod; intermediate states
	// that last less than the call before may be skipped, the last state never is. It may call the Runner, except Stop.
	Status func(pod *corev1.Pod, status corev1.PodStatus)

	// Event is told what kubelet would write as an Event. kind is corev1.EventTypeNormal or EventTypeWarning.
	// It may be called concurrently, and must not call the Runner.
	Event func(pod *corev1.Pod, kind, reason, message string)

	// BackOff is the delay before the second restart of a container; it doubles with each further one up to 30 times
	// this value and is forgotten after a run of 60 times this value. The first restart is immediate, as kubelet's is.
	// Zero means kubelet's 10 s (so 300 s at most, forgotten after 10 min).
	BackOff time.Duration

	// Log gets what is of no interest to the pod's owner, such as a failed clean-up. Nil means slog.Default().
	Log *slog.Logger
}

// CNI is a network configuration list and where its plugins are (CNI spec 1.1, section 1).
type CNI struct {
	Conflist []byte   // JSON of the list
	Path     []string // directories searched for plugin programs
	CacheDir string   // libcni's result cache; Root/cni when empty
}

// DNS is what /etc/resolv.conf of pods with dnsPolicy ClusterFirst says.
type DNS struct {
	Server netip.Addr // invalid: the host's resolv.conf is used instead
	Domain string     // cluster domain, "cluster.local" when empty
}

// Node is the machine as pods see it.
type Node struct {
	Name string
	IP   netip.Addr   // status.hostIP, and the pod IP of hostNetwork pods
	IPs  []netip.Addr // status.hostIPs of a dual-stack node; IP alone when empty
}

// LogOptions selects what Logs writes; the zero value means all of the current instance's lines.
type LogOptions struct {
	Follow     bool      // go on until the container ends or the context does
	Previous   bool      // of the instance before the last restart
	Timestamps bool      // begin each line with its time, RFC 3339 with nanoseconds
	Tail       *int64    // at most so many lines from the end; nil means all
	Since      time.Time // only lines at or after this time
}
