package install

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
)

// GroupVersion and Kind of the file format, Istio's.
const (
	GroupVersion = "install.istio.io/v1alpha1"
	Kind         = "IstioOperator"
)

// Operator is an IstioOperator file: what the user wants, in Istio's words.
type Operator struct {
	APIVersion string        `json:"apiVersion,omitempty"`
	Kind       string        `json:"kind,omitempty"`
	Metadata   *OperatorMeta `json:"metadata,omitempty"`
	Spec       Spec          `json:"spec,omitempty"`
	Status     any           `json:"status,omitempty"` // of an exported installed-state; ignored
}

// OperatorMeta is what of metadata has a meaning: the namespace of the control plane, and a name for people. The rest may
// stand there in a file that came out of a cluster.
type OperatorMeta struct {
	Name              string            `json:"name,omitempty"`
	Namespace         string            `json:"namespace,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	CreationTimestamp any               `json:"creationTimestamp,omitempty"`
	Generation        any               `json:"generation,omitempty"`
	ResourceVersion   string            `json:"resourceVersion,omitempty"`
	UID               string            `json:"uid,omitempty"`
	ManagedFields     []any             `json:"managedFields,omitempty"`
	Finalizers        []string          `json:"finalizers,omitempty"`
	OwnerReferences   []any             `json:"ownerReferences,omitempty"`
}

// Spec is IstioOperator.spec.
type Spec struct {
	Profile              string     `json:"profile,omitempty"`
	Hub                  string     `json:"hub,omitempty"`
	Tag                  string     `json:"tag,omitempty"`
	Namespace            string     `json:"namespace,omitempty"` // of the control plane
	Revision             string     `json:"revision,omitempty"`
	CompatibilityVersion string     `json:"compatibilityVersion,omitempty"` // accepted, without effect
	MeshConfig           Tree       `json:"meshConfig,omitempty"`
	Components           Components `json:"components,omitempty"`
	Values               Tree       `json:"values,omitempty"`
	UnvalidatedValues    Tree       `json:"unvalidatedValues,omitempty"`
}

// Components of the mesh.
type Components struct {
	Base            Component `json:"base,omitempty"`
	Pilot           Component `json:"pilot,omitempty"`
	CNI             Component `json:"cni,omitempty"`
	Ztunnel         Component `json:"ztunnel,omitempty"`      // only to be refused when enabled
	IstiodRemote    Component `json:"istiodRemote,omitempty"` // only to be refused when enabled
	IngressGateways []Gateway `json:"ingressGateways,omitempty"`
	EgressGateways  []Gateway `json:"egressGateways,omitempty"`
}

// Component is one part of the control plane.
type Component struct {
	Enabled   *bool  `json:"enabled,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Hub       string `json:"hub,omitempty"`
	Tag       string `json:"tag,omitempty"`
	K8s       K8s    `json:"k8s,omitempty"`
}

// Gateway is one gateway: a release of the gateway chart.
type Gateway struct {
	Enabled   *bool             `json:"enabled,omitempty"`
	Name      string            `json:"name,omitempty"`
	Namespace string            `json:"namespace,omitempty"`
	Hub       string            `json:"hub,omitempty"`
	Tag       string            `json:"tag,omitempty"`
	Label     map[string]string `json:"label,omitempty"`
	K8s       K8s               `json:"k8s,omitempty"`
}

// K8s are the Kubernetes settings of a component.
type K8s struct {
	Affinity            *corev1.Affinity                  `json:"affinity,omitempty"`
	Env                 []corev1.EnvVar                   `json:"env,omitempty"`
	HPASpec             *autoscalingv2Spec                `json:"hpaSpec,omitempty"`
	ImagePullPolicy     corev1.PullPolicy                 `json:"imagePullPolicy,omitempty"`
	NodeSelector        map[string]string                 `json:"nodeSelector,omitempty"`
	PodDisruptionBudget *policyv1.PodDisruptionBudgetSpec `json:"podDisruptionBudget,omitempty"`
	PodAnnotations      map[string]string                 `json:"podAnnotations,omitempty"`
	PodLabels           map[string]string                 `json:"podLabels,omitempty"`
	PriorityClassName   string                            `json:"priorityClassName,omitempty"`
	ReadinessProbe      *corev1.Probe                     `json:"readinessProbe,omitempty"`
	ReplicaCount        *int32                            `json:"replicaCount,omitempty"`
	Resources           *corev1.ResourceRequirements      `json:"resources,omitempty"`
	SecurityContext     *corev1.PodSecurityContext        `json:"securityContext,omitempty"`
	Service             *corev1.ServiceSpec               `json:"service,omitempty"`
	ServiceAnnotations  map[string]string                 `json:"serviceAnnotations,omitempty"`
	Strategy            *appsv1.DeploymentStrategy        `json:"strategy,omitempty"`
	Tolerations         []corev1.Toleration               `json:"tolerations,omitempty"`
	TopologySpread      []corev1.TopologySpreadConstraint `json:"topologySpreadConstraints,omitempty"`
	Volumes             []corev1.Volume                   `json:"volumes,omitempty"`
	VolumeMounts        []corev1.VolumeMount              `json:"volumeMounts,omitempty"`
	Overlays            []Overlay                         `json:"overlays,omitempty"`
}

// autoscalingv2Spec is a HorizontalPodAutoscaler's spec with the metrics of autoscaling/v2 or of v2beta1, which many files still
// have (targetAverageUtilization).
type autoscalingv2Spec struct {
	ScaleTargetRef autoscalingv2.CrossVersionObjectReference      `json:"scaleTargetRef,omitempty"` // the chart knows it; ignored
	MinReplicas    *int32                                         `json:"minReplicas,omitempty"`
	MaxReplicas    int32                                          `json:"maxReplicas,omitempty"`
	Metrics        []hpaMetric                                    `json:"metrics,omitempty"`
	Behavior       *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior,omitempty"`
}

type hpaMetric struct {
	Type     string `json:"type,omitempty"`
	Resource *struct {
		Name                     string                      `json:"name,omitempty"`
		Target                   *autoscalingv2.MetricTarget `json:"target,omitempty"`
		TargetAverageUtilization *int32                      `json:"targetAverageUtilization,omitempty"` // v2beta1
	} `json:"resource,omitempty"`
}

// Overlay changes objects after the chart made them.
type Overlay struct {
	APIVersion string  `json:"apiVersion,omitempty"`
	Kind       string  `json:"kind,omitempty"`
	Name       string  `json:"name,omitempty"`
	Patches    []Patch `json:"patches,omitempty"`
}

// Patch sets the value at a path, or removes what is there when the value is null or missing.
// Items of lists are named as [key:value], [:value], [index], or [-1] for a new one.
type Patch struct {
	Path  string `json:"path,omitempty"`
	Value any    `json:"value,omitempty"`
}

// on says whether a component is enabled; what is not said is off.
func on(enabled *bool) bool { return enabled != nil && *enabled }
