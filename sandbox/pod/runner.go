package pod

import (
	"context"
	"errors"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ErrNotFound is wrapped by errors about a pod or container that the Runner does not have.
var ErrNotFound = errors.New("not found")

// Runner runs pods.
type Runner struct{ cfg Config }

// New checks cfg and the machine (root, namespaces) and prepares Root. It does not touch what a former run left: see Clean.
func New(cfg Config) (*Runner, error) { return &Runner{cfg: cfg}, nil }

// Start begins to run a pod and returns at once; what happens is told through Config.Status and Config.Event until
// Stop. The pod needs a UID that the Runner does not have yet. The Runner keeps its own copy.
func (r *Runner) Start(pod *corev1.Pod) error { return errors.ErrUnsupported }

// Stop ends a pod as kubelet does: preStop hooks and SIGTERM, containers first, then sidecars in reverse order, SIGKILL
// after grace; then CNI DEL and all that the pod left on the machine is removed. It returns when that is done, also
// when ctx ends before (the rest of the grace is then cut short). ErrNotFound when there is no such pod.
func (r *Runner) Stop(ctx context.Context, uid types.UID, grace time.Duration) error {
	return errors.ErrUnsupported
}

// Update replaces labels and annotations of a running pod, for downwardAPI volumes; the rest of a pod is immutable.
func (r *Runner) Update(pod *corev1.Pod) error { return errors.ErrUnsupported }

// Refresh projects ConfigMaps and Secrets anew into the volumes of all pods: call it when one changed.
func (r *Runner) Refresh() {}

// Logs writes what a container wrote.
func (r *Runner) Logs(ctx context.Context, uid types.UID, container string, o LogOptions, w io.Writer) error {
	return errors.ErrUnsupported
}

// Exec runs argv in a running container, as `kubectl exec` does, and returns its exit code. err is about not having run it.
func (r *Runner) Exec(ctx context.Context, uid types.UID, container string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (exitCode int, err error) {
	return -1, errors.ErrUnsupported
}

// NetNS returns the path of a pod's network namespace while it has one of its own.
func (r *Runner) NetNS(uid types.UID) (path string, ok bool) { return "", false }

// Check asks the CNI chain whether a pod's network is still as it was made (CNI spec 1.1: CHECK).
func (r *Runner) Check(ctx context.Context, uid types.UID) error { return errors.ErrUnsupported }

// Clean removes everything that a former run left under Root: processes, namespaces, CNI state, mounts, files.
// It refuses to work while this Runner has pods.
func (r *Runner) Clean(ctx context.Context) error { return errors.ErrUnsupported }
