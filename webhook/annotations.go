package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-mesh/weft/mesh"
)

// Annotations by which a pod's author sets up its proxy (Istio API: resource annotations).
const (
	annProxyCPU           = "sidecar.istio.io/proxyCPU"
	annProxyCPULimit      = "sidecar.istio.io/proxyCPULimit"
	annProxyMemory        = "sidecar.istio.io/proxyMemory"
	annProxyMemoryLimit   = "sidecar.istio.io/proxyMemoryLimit"
	annProxyImage         = "sidecar.istio.io/proxyImage"
	annProxyImageType     = "sidecar.istio.io/proxyImageType"
	annLogLevel           = "sidecar.istio.io/logLevel"
	annComponentLogLevel  = "sidecar.istio.io/componentLogLevel"
	annRewriteProbers     = "sidecar.istio.io/rewriteAppHTTPProbers"
	annDiscoveryAddress   = "sidecar.istio.io/discoveryAddress"
	annBootstrapOverride  = "sidecar.istio.io/bootstrapOverride"
	annUserVolume         = "sidecar.istio.io/userVolume"
	annUserVolumeMount    = "sidecar.istio.io/userVolumeMount"
	annStatsPrefixes      = "sidecar.istio.io/statsInclusionPrefixes"
	annStatsSuffixes      = "sidecar.istio.io/statsInclusionSuffixes"
	annStatsRegexps       = "sidecar.istio.io/statsInclusionRegexps"
	annStatsFlushInterval = "sidecar.istio.io/statsFlushInterval"
	annStatusPort         = "status.sidecar.istio.io/port"
	annReadyInitialDelay  = "readiness.status.sidecar.istio.io/initialDelaySeconds"
	annReadyPeriod        = "readiness.status.sidecar.istio.io/periodSeconds"
	annReadyFailures      = "readiness.status.sidecar.istio.io/failureThreshold"
	annProxyConfig        = "proxy.istio.io/config"
	annMergeMetrics       = "prometheus.istio.io/merge-metrics"
	annScrape             = "prometheus.io/scrape"
	annScrapePort         = "prometheus.io/port"
	annScrapePath         = "prometheus.io/path"
)

// withoutEffect are annotations of Istio that stock Envoy as a native sidecar has no use for, and why.
var withoutEffect = map[string]string{
	"sidecar.istio.io/agentLogLevel":                     "there is no agent process in the pod",
	"sidecar.istio.io/nativeSidecar":                     "the proxy always is a native sidecar",
	"sidecar.istio.io/enableCoreDump":                    "the proxy has no writable volume",
	"sidecar.istio.io/controlPlaneAuthPolicy":            "the control plane is always reached over TLS",
	"readiness.status.sidecar.istio.io/applicationPorts": "Istio ignores it too",
	"proxy.istio.io/overrides":                           "what is overridden is read from the container istio-proxy itself",
	"sidecar.istio.io/statsCompression":                  "the metrics ports answer uncompressed",
	"sidecar.istio.io/statsHistogramBuckets":             "the bucket bounds are Envoy's",
	"sidecar.istio.io/statsHistogramBins":                "the histogram bins are Envoy's",
}

// userSettings are what the annotations say, parsed. A zero field was not set.
type userSettings struct {
	image, imageType           string
	resources                  *corev1.ResourceRequirements
	logLevel, componentLog     string
	discoveryAddress           string
	bootstrapOverride          string
	volumes                    []corev1.Volume
	mounts                     []corev1.VolumeMount
	statsPrefixes              []string
	statsSuffixes              []string
	statsRegexps               []string
	statsFlush                 time.Duration
	keepProbes                 bool
	mergeMetrics               *bool
	statusPort                 *uint16 // 0: no readiness probe
	readyDelay                 *int32
	readyPeriod, readyFailures *int32
	startGate                  StartGate
}

// annotationError says what is wrong with one annotation: the message names it, its value and what to write instead.
func annotationError(name, value string, problem error) error {
	const most = 200
	if len(value) > most {
		value = value[:most] + "..."
	}
	return fmt.Errorf("annotation %s: value %q: %w", name, value, problem)
}

// parseAnnotations reports everything that is wrong together.
func parseAnnotations(a map[string]string) (userSettings, []string, error) {
	var u userSettings
	var errs []error
	var warnings []string
	for name, value := range a {
		parse, ok := annotationParsers[name]
		if !ok {
			if why, useless := withoutEffect[name]; useless {
				warnings = append(warnings, fmt.Sprintf("annotation %s has no effect: %s", name, why))
			}
			continue
		}
		if err := parse(&u, value); err != nil {
			errs = append(errs, annotationError(name, value, err))
		}
	}
	if err := u.setResources(a); err != nil {
		errs = append(errs, err)
	}
	slices.Sort(warnings)
	slices.SortFunc(errs, func(x, y error) int { return strings.Compare(x.Error(), y.Error()) })
	return u, warnings, errors.Join(errs...)
}

var annotationParsers = map[string]func(u *userSettings, value string) error{
	annProxyImage:        func(u *userSettings, v string) (err error) { u.image, err = parseImage(v); return },
	annProxyImageType:    func(u *userSettings, v string) (err error) { u.imageType, err = parseImageType(v); return },
	annLogLevel:          func(u *userSettings, v string) error { u.logLevel = v; return checkLogLevel(v) },
	annComponentLogLevel: func(u *userSettings, v string) error { u.componentLog = v; return checkComponentLog(v) },
	annDiscoveryAddress:  func(u *userSettings, v string) error { u.discoveryAddress = v; return nil }, // bootstrap.New checks it
	annBootstrapOverride: func(u *userSettings, v string) error {
		u.bootstrapOverride = v
		if p := validation.IsDNS1123Subdomain(v); len(p) > 0 {
			return errors.New("not the name of a ConfigMap: " + strings.Join(p, "; "))
		}
		return nil
	},
	annRewriteProbers: func(u *userSettings, v string) error {
		rewrite, err := parseBool(v)
		u.keepProbes = !rewrite
		return err
	},
	annMergeMetrics: func(u *userSettings, v string) error {
		merge, err := parseBool(v)
		u.mergeMetrics = &merge
		return err
	},
	annUserVolume: func(u *userSettings, v string) (err error) {
		u.volumes, err = parseNamed(v, func(x *corev1.Volume) *string { return &x.Name })
		return err
	},
	annUserVolumeMount: func(u *userSettings, v string) (err error) {
		u.mounts, err = parseNamed(v, func(x *corev1.VolumeMount) *string { return &x.Name })
		return err
	},
	annStatsPrefixes: func(u *userSettings, v string) error { u.statsPrefixes = commaList(v); return nil },
	annStatsSuffixes: func(u *userSettings, v string) error { u.statsSuffixes = commaList(v); return nil },
	annStatsRegexps: func(u *userSettings, v string) error {
		u.statsRegexps = commaList(v)
		for _, r := range u.statsRegexps {
			if _, err := regexp.Compile(r); err != nil {
				return fmt.Errorf("%q is not an RE2 regular expression: %w", r, err)
			}
		}
		return nil
	},
	annStatsFlushInterval: func(u *userSettings, v string) (err error) {
		u.statsFlush, err = time.ParseDuration(v)
		if err != nil || u.statsFlush < time.Millisecond || u.statsFlush > 5*time.Minute {
			return errors.New("want a duration from 1ms to 5m, such as 5s")
		}
		return nil
	},
	annStatusPort: func(u *userSettings, v string) error {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return errors.New("want a port number, or 0 for no readiness probe")
		}
		port := uint16(n)
		u.statusPort = &port
		return nil
	},
	mesh.DiscoveryAnnotation: checkDiscovery,
	annStartGate:             func(u *userSettings, v string) (err error) { u.startGate, err = parseStartGate(v); return },
	annReadyInitialDelay:     func(u *userSettings, v string) (err error) { u.readyDelay, err = parseSeconds(v, 0); return },
	annReadyPeriod:           func(u *userSettings, v string) (err error) { u.readyPeriod, err = parseSeconds(v, 1); return },
	annReadyFailures:         func(u *userSettings, v string) (err error) { u.readyFailures, err = parseSeconds(v, 1); return },
}

// setResources follows Istio's template: one of the four annotations replaces all of the mesh's requests and limits.
func (u *userSettings) setResources(a map[string]string) error {
	var r corev1.ResourceRequirements
	var errs []error
	for _, x := range []struct {
		annotation string
		list       *corev1.ResourceList
		resource   corev1.ResourceName
		example    string
	}{
		{annProxyCPU, &r.Requests, corev1.ResourceCPU, "100m"},
		{annProxyMemory, &r.Requests, corev1.ResourceMemory, "128Mi"},
		{annProxyCPULimit, &r.Limits, corev1.ResourceCPU, "2"},
		{annProxyMemoryLimit, &r.Limits, corev1.ResourceMemory, "1Gi"},
	} {
		value, ok := a[x.annotation]
		if !ok {
			continue
		}
		q, err := resource.ParseQuantity(value)
		if err != nil || q.Sign() <= 0 {
			errs = append(errs, annotationError(x.annotation, value, fmt.Errorf("want a quantity above zero, such as %s", x.example)))
			continue
		}
		if *x.list == nil {
			*x.list = corev1.ResourceList{}
		}
		(*x.list)[x.resource] = q
		u.resources = &r
	}
	for request, limit := range map[string]string{annProxyCPU: annProxyCPULimit, annProxyMemory: annProxyMemoryLimit} {
		name := corev1.ResourceCPU
		if request == annProxyMemory {
			name = corev1.ResourceMemory
		}
		want, hasWant := r.Requests[name]
		most, hasMost := r.Limits[name]
		if hasWant && hasMost && want.Cmp(most) > 0 {
			errs = append(errs, annotationError(request, a[request], fmt.Errorf("more than annotation %s allows (%s); raise that or lower this", limit, a[limit])))
		}
	}
	return errors.Join(errs...)
}

// A reference as container runtimes take it: host, path, tag and digest, none with a character that means anything elsewhere.
var imagePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:/-]*(@sha256:[a-f0-9]{64})?$`)

func parseImage(v string) (string, error) {
	if len(v) > 512 || !imagePattern.MatchString(v) {
		return "", errors.New("not an image reference such as " + DefaultProxyImage)
	}
	return v, nil
}

func parseImageType(v string) (string, error) {
	switch v {
	case "default", "debug", "distroless":
		return v, nil
	}
	return "", errors.New("want default, debug or distroless")
}

// stock is the tag of Envoy's own images: v1.40.0, distroless-v1.40.0, debug-v1.40.0.
var stockTag = regexp.MustCompile(`^(.*envoyproxy/envoy):(?:distroless-|debug-)?(v[0-9][0-9.]*)$`)

// imageOfType picks Envoy's image of that type; other people's images are left as they are, as nobody knows their tags.
func imageOfType(image, kind string) string {
	m := stockTag.FindStringSubmatch(image)
	if m == nil {
		return image
	}
	switch kind {
	case "debug":
		return m[1] + ":debug-" + m[2]
	case "distroless":
		return m[1] + ":distroless-" + m[2]
	case "default":
		return m[1] + ":" + m[2]
	}
	return image
}

// logLevels are Envoy's.
var logLevels = []string{"trace", "debug", "info", "warning", "warn", "error", "critical", "off"}

func checkLogLevel(v string) error {
	if slices.Contains(logLevels, v) {
		return nil
	}
	return errors.New("want one of " + strings.Join(logLevels, ", "))
}

var loggerName = regexp.MustCompile(`^[a-z0-9_]+$`)

func checkComponentLog(v string) error {
	for item := range strings.SplitSeq(v, ",") {
		name, level, ok := strings.Cut(item, ":")
		if !ok || !loggerName.MatchString(name) {
			return fmt.Errorf("%q: want logger:level with commas between them, such as http:debug,misc:error", item)
		}
		if err := checkLogLevel(level); err != nil {
			return fmt.Errorf("%q: %w", item, err)
		}
	}
	return nil
}

func parseBool(v string) (bool, error) {
	switch v {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New(`want "true" or "false"`)
}

func parseSeconds(v string, least int32) (*int32, error) {
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || int32(n) < least {
		return nil, fmt.Errorf("want a whole number, at least %d", least)
	}
	out := int32(n)
	return &out, nil
}

func commaList(v string) []string {
	var out []string
	for item := range strings.SplitSeq(v, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

// parseNamed reads {"name": {...}} (Istio's template) or [{"name": "name", ...}] (Istio's documentation), strictly.
func parseNamed[T any](v string, name func(*T) *string) ([]T, error) {
	var list []T
	if strings.HasPrefix(strings.TrimSpace(v), "[") {
		if err := strictJSON([]byte(v), &list); err != nil {
			return nil, err
		}
	} else {
		var m map[string]T
		if err := strictJSON([]byte(v), &m); err != nil {
			return nil, fmt.Errorf(`%w; want JSON such as {"name": {...}}`, err)
		}
		for k, x := range m {
			*name(&x) = k
			list = append(list, x)
		}
		slices.SortFunc(list, func(x, y T) int { return strings.Compare(*name(&x), *name(&y)) })
	}
	for i := range list {
		if p := validation.IsDNS1123Label(*name(&list[i])); len(p) > 0 {
			return nil, fmt.Errorf("name %q: %s", *name(&list[i]), strings.Join(p, "; "))
		}
	}
	return list, nil
}

// strictJSON decodes one value, with no unknown field and nothing behind it.
func strictJSON(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text after the JSON value")
	}
	return nil
}
