package envoy

import (
	"math"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	networking "istio.io/api/networking/v1alpha3"
)

// A policy is what a DestinationRule says about one port of a host or subset, all levels merged.
type policy struct {
	lb      *networking.LoadBalancerSettings
	pool    *networking.ConnectionPoolSettings
	outlier *networking.OutlierDetection
	tls     *networking.ClientTLSSettings
	budget  *networking.TrafficPolicy_RetryBudget
}

// policyFor merges the levels: rule, its port, subset, the subset's port; each field as a whole, the later wins. subset may be nil.
// (Istio API: TrafficPolicy.portLevelSettings, Subset.trafficPolicy.)
func policyFor(rule *networking.DestinationRule, subset *networking.Subset, port uint16) policy {
	var p policy
	p.add(rule.GetTrafficPolicy(), port)
	p.add(subset.GetTrafficPolicy(), port)
	return p
}

func (p *policy) add(t *networking.TrafficPolicy, port uint16) {
	if t == nil {
		return
	}
	p.override(t.LoadBalancer, t.ConnectionPool, t.OutlierDetection, t.Tls)
	if t.RetryBudget != nil {
		p.budget = t.RetryBudget
	}
	for _, l := range t.PortLevelSettings {
		if l.GetPort().GetNumber() == uint32(port) {
			p.override(l.LoadBalancer, l.ConnectionPool, l.OutlierDetection, l.Tls)
		}
	}
}

func (p *policy) override(
	lb *networking.LoadBalancerSettings, pool *networking.ConnectionPoolSettings,
	outlier *networking.OutlierDetection, tls *networking.ClientTLSSettings,
) {
	if lb != nil {
		p.lb = lb
	}
	if pool != nil {
		p.pool = pool
	}
	if outlier != nil {
		p.outlier = outlier
	}
	if tls != nil {
		p.tls = tls
	}
}

func (p policy) http() *networking.ConnectionPoolSettings_HTTPSettings { return p.pool.GetHttp() }
func (p policy) tcp() *networking.ConnectionPoolSettings_TCPSettings   { return p.pool.GetTcp() }

func (p policy) passthrough() bool {
	return p.lb.GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH
}

// apply sets everything but protocol and TLS on a cluster whose discovery type is set.
func (p policy) apply(m *cluster.Cluster) {
	if t := p.tcp().GetConnectTimeout(); t.AsDuration() > 0 {
		m.ConnectTimeout = t
	}
	if k := p.tcp().GetTcpKeepalive(); k != nil {
		m.UpstreamConnectionOptions = &cluster.UpstreamConnectionOptions{TcpKeepalive: keepalive(k)}
	}
	m.CircuitBreakers = circuitBreakers(p.pool)
	if b := p.budget; b != nil {
		m.CircuitBreakers.Thresholds[0].RetryBudget = retryBudget(b)
	}
	p.balance(m)
	p.eject(m)
}

func keepalive(k *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) *core.TcpKeepalive {
	out := &core.TcpKeepalive{}
	if k.Probes > 0 {
		out.KeepaliveProbes = u32(k.Probes)
	}
	if k.Time != nil {
		out.KeepaliveTime = u32(uint32(k.Time.Seconds))
	}
	if k.Interval != nil {
		out.KeepaliveInterval = u32(uint32(k.Interval.Seconds))
	}
	return out
}

// circuitBreakers: without limits of the user there are none; Envoy's own default of 1024 would be a surprise.
// (Istio API: ConnectionPoolSettings, "2^32-1".)
func circuitBreakers(pool *networking.ConnectionPoolSettings) *cluster.CircuitBreakers {
	limit := func(n int32) *wrapperspb.UInt32Value {
		if n > 0 {
			return u32(uint32(n))
		}
		return u32(math.MaxUint32)
	}
	return &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{
		MaxConnections:     limit(pool.GetTcp().GetMaxConnections()),
		MaxPendingRequests: limit(pool.GetHttp().GetHttp1MaxPendingRequests()),
		MaxRequests:        limit(pool.GetHttp().GetHttp2MaxRequests()),
		MaxRetries:         limit(pool.GetHttp().GetMaxRetries()),
		TrackRemaining:     true,
	}}}
}

func retryBudget(b *networking.TrafficPolicy_RetryBudget) *cluster.CircuitBreakers_Thresholds_RetryBudget {
	out := &cluster.CircuitBreakers_Thresholds_RetryBudget{}
	if b.GetPercent() != nil {
		out.BudgetPercent = &typev3.Percent{Value: b.GetPercent().GetValue()}
	}
	if n := b.GetMinRetryConcurrency(); n > 0 {
		out.MinRetryConcurrency = u32(n)
	}
	return out
}

// commonHTTP is nil when the rule limits nothing about connections that carry requests.
func (p policy) commonHTTP() *core.HttpProtocolOptions {
	h := p.http()
	o := &core.HttpProtocolOptions{IdleTimeout: h.GetIdleTimeout(), MaxConnectionDuration: p.tcp().GetMaxConnectionDuration()}
	if n := h.GetMaxRequestsPerConnection(); n > 0 {
		o.MaxRequestsPerConnection = u32(uint32(n))
	}
	if o.IdleTimeout == nil {
		o.IdleTimeout = p.tcp().GetIdleTimeout()
	}
	if o.IdleTimeout == nil && o.MaxConnectionDuration == nil && o.MaxRequestsPerConnection == nil {
		return nil
	}
	return o
}

// balance sets the load balancer; LEAST_REQUEST is the default (Istio API: LoadBalancerSettings.SimpleLB).
func (p policy) balance(m *cluster.Cluster) {
	if m.GetType() == cluster.Cluster_ORIGINAL_DST {
		m.LbPolicy = cluster.Cluster_CLUSTER_PROVIDED
		return
	}
	if hash := p.lb.GetConsistentHash(); hash != nil {
		consistentHash(m, hash)
		return
	}
	warmup := slowStart(p.lb)
	switch p.lb.GetSimple() {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		m.LbPolicy = cluster.Cluster_ROUND_ROBIN
		if warmup != nil {
			m.LbConfig = &cluster.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &cluster.Cluster_RoundRobinLbConfig{SlowStartConfig: warmup}}
		}
	case networking.LoadBalancerSettings_RANDOM:
		m.LbPolicy = cluster.Cluster_RANDOM
	default:
		m.LbPolicy = cluster.Cluster_LEAST_REQUEST
		if warmup != nil {
			m.LbConfig = &cluster.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &cluster.Cluster_LeastRequestLbConfig{SlowStartConfig: warmup}}
		}
	}
}

func slowStart(lb *networking.LoadBalancerSettings) *cluster.Cluster_SlowStartConfig {
	w := lb.GetWarmup()
	if w == nil {
		if d := lb.GetWarmupDurationSecs(); d != nil {
			return &cluster.Cluster_SlowStartConfig{SlowStartWindow: d}
		}
		return nil
	}
	out := &cluster.Cluster_SlowStartConfig{SlowStartWindow: w.GetDuration()}
	if w.GetAggression() != nil {
		out.Aggression = &core.RuntimeDouble{DefaultValue: w.GetAggression().GetValue(), RuntimeKey: "weft.slow_start.aggression"}
	}
	if w.GetMinimumPercent() != nil {
		out.MinWeightPercent = &typev3.Percent{Value: w.GetMinimumPercent().GetValue()}
	}
	return out
}

func consistentHash(m *cluster.Cluster, hash *networking.LoadBalancerSettings_ConsistentHashLB) {
	if maglev := hash.GetMaglev(); maglev != nil {
		m.LbPolicy = cluster.Cluster_MAGLEV
		if n := maglev.GetTableSize(); n > 0 {
			m.LbConfig = &cluster.Cluster_MaglevLbConfig_{MaglevLbConfig: &cluster.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(n)}}
		}
		return
	}
	size := uint64(1024) // Istio API: ConsistentHashLB.RingHash.minimumRingSize
	if n := hash.GetRingHash().GetMinimumRingSize(); n > 0 {
		size = n
	} else if n := hash.GetMinimumRingSize(); n > 0 { //nolint:staticcheck // old manifests
		size = n
	}
	m.LbPolicy = cluster.Cluster_RING_HASH
	m.LbConfig = &cluster.Cluster_RingHashLbConfig_{RingHashLbConfig: &cluster.Cluster_RingHashLbConfig{
		MinimumRingSize: wrapperspb.UInt64(size),
	}}
}

// eject sets outlier detection. A counter that the rule names is enforced always, one it sets to zero never; success rates never are;
// and there is no panic mode unless the rule asks for one: with few pods it would send requests to the broken ones.
func (p policy) eject(m *cluster.Cluster) {
	o := p.outlier
	if o == nil {
		return
	}
	out := &cluster.OutlierDetection{
		EnforcingSuccessRate: u32(0),
		Interval:             o.GetInterval(),
		BaseEjectionTime:     o.GetBaseEjectionTime(),
	}
	enforce := func(n *wrapperspb.UInt32Value) (count, percent *wrapperspb.UInt32Value) {
		switch {
		case n == nil:
			return nil, nil
		case n.GetValue() == 0:
			return n, u32(0)
		}
		return n, u32(100)
	}
	out.Consecutive_5Xx, out.EnforcingConsecutive_5Xx = enforce(o.GetConsecutive_5XxErrors())
	out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = enforce(o.GetConsecutiveGatewayErrors())
	if o.GetMaxEjectionPercent() > 0 {
		out.MaxEjectionPercent = u32(uint32(o.GetMaxEjectionPercent()))
	}
	if b := o.GetBaseEjectionTime(); b.AsDuration() > defaultMaxEjectionTime.AsDuration() {
		out.MaxEjectionTime = b // Envoy refuses a base above the maximum
	}
	if o.GetSplitExternalLocalOriginErrors() {
		out.SplitExternalLocalOriginErrors = true
		out.EnforcingLocalOriginSuccessRate = u32(0)
		out.ConsecutiveLocalOriginFailure, out.EnforcingConsecutiveLocalOriginFailure = enforce(o.GetConsecutiveLocalOriginFailures())
	}
	m.OutlierDetection = out
	if m.CommonLbConfig == nil {
		m.CommonLbConfig = &cluster.Cluster_CommonLbConfig{}
	}
	m.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: float64(max(o.GetMinHealthPercent(), 0))}
}

// defaultMaxEjectionTime is Envoy's (config.cluster.v3.OutlierDetection.max_ejection_time).
var defaultMaxEjectionTime = durationpb.New(300e9)
