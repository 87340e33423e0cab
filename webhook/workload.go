package webhook

import (
	"cmp"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Labels that the built-in templates write.
const (
	labelTLSMode           = "security.istio.io/tlsMode"
	labelCanonicalName     = "service.istio.io/canonical-name"
	labelCanonicalRevision = "service.istio.io/canonical-revision"
	labelNetwork           = "topology.istio.io/network"
)

// owner is the object that a person thinks of when they see the pod: the Deployment behind a ReplicaSet, the CronJob behind a
// Job. It is guessed from the pod alone, as Istio does, so that injection needs no look-up.
type owner struct {
	APIVersion, Kind, Name string
}

// Kubernetes names a CronJob's Jobs by the minute they are due.
var cronJobSuffix = regexp.MustCompile(`^(.+)-\d{8,10}$`)

func ownerOf(pod *corev1.Pod) owner {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		name := pod.Name
		if name == "" {
			name = strings.TrimSuffix(pod.GenerateName, "-")
		}
		return owner{"v1", "Pod", name}
	}
	o := owner{ref.APIVersion, ref.Kind, ref.Name}
	switch ref.Kind {
	case "ReplicaSet":
		if hash := pod.Labels["pod-template-hash"]; hash != "" {
			if name, ok := strings.CutSuffix(ref.Name, "-"+hash); ok {
				return owner{"apps/v1", "Deployment", name}
			}
		}
		if strings.HasPrefix(ref.APIVersion, "argoproj.io/") {
			o.Kind = "Rollout"
		}
	case "ReplicationController":
		if config := pod.Labels["deploymentconfig"]; config != "" {
			return owner{"apps.openshift.io/v1", "DeploymentConfig", config}
		}
	case "Job":
		if m := cronJobSuffix.FindStringSubmatch(ref.Name); m != nil {
			return owner{"batch/v1", "CronJob", m[1]}
		}
	}
	return o
}

// uid is Istio's OWNER: "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1".
func (o owner) uid(namespace string) string {
	plural := strings.ToLower(o.Kind) + "s"
	return "kubernetes://apis/" + o.APIVersion + "/namespaces/" + namespace + "/" + plural + "/" + o.Name
}

// canonical gives the service name and revision under which telemetry groups the workload (Istio: canonical service labels).
func canonical(pod *corev1.Pod, o owner) (name, revision string) {
	l := pod.Labels
	name = cmp.Or(l[labelCanonicalName], l["app.kubernetes.io/name"], l["app"], o.Name)
	revision = cmp.Or(l[labelCanonicalRevision], l["app.kubernetes.io/version"], l["version"], "latest")
	return name, revision
}
