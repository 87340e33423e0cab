package envoy

import (
	"encoding/json"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	fileaccesslog "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamaccesslog "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/structpb"

	meshconfig "istio.io/api/mesh/v1alpha1"
)

// Istio's access log formats (Istio: "Default access log format"), which log pipelines parse.
const textFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% ` +
	`%DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" ` +
	`"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% ` +
	`%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

var jsonFormat = map[string]string{
	"start_time":                        "%START_TIME%",
	"route_name":                        "%ROUTE_NAME%",
	"method":                            "%REQ(:METHOD)%",
	"path":                              "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
	"protocol":                          "%PROTOCOL%",
	"response_code":                     "%RESPONSE_CODE%",
	"response_flags":                    "%RESPONSE_FLAGS%",
	"response_code_details":             "%RESPONSE_CODE_DETAILS%",
	"connection_termination_details":    "%CONNECTION_TERMINATION_DETAILS%",
	"bytes_received":                    "%BYTES_RECEIVED%",
	"bytes_sent":                        "%BYTES_SENT%",
	"duration":                          "%DURATION%",
	"upstream_service_time":             "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
	"x_forwarded_for":                   "%REQ(X-FORWARDED-FOR)%",
	"user_agent":                        "%REQ(USER-AGENT)%",
	"request_id":                        "%REQ(X-REQUEST-ID)%",
	"authority":                         "%REQ(:AUTHORITY)%",
	"upstream_host":                     "%UPSTREAM_HOST%",
	"upstream_cluster":                  "%UPSTREAM_CLUSTER_RAW%",
	"upstream_local_address":            "%UPSTREAM_LOCAL_ADDRESS%",
	"downstream_local_address":          "%DOWNSTREAM_LOCAL_ADDRESS%",
	"downstream_remote_address":         "%DOWNSTREAM_REMOTE_ADDRESS%",
	"requested_server_name":             "%REQUESTED_SERVER_NAME%",
	"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}

// accessLogs is the log of requests and connections that MeshConfig asks for; nil when it asks for none
// (Istio API: MeshConfig.accessLogFile, accessLogEncoding, accessLogFormat).
func accessLogs(m *meshconfig.MeshConfig) []*accesslog.AccessLog {
	if m.GetAccessLogFile() == "" {
		return nil
	}
	return []*accesslog.AccessLog{accessLog(m)}
}

// listenerAccessLogs logs only connections that no filter chain took: those appear nowhere else.
func listenerAccessLogs(m *meshconfig.MeshConfig) []*accesslog.AccessLog {
	if m.GetAccessLogFile() == "" {
		return nil
	}
	l := accessLog(m)
	l.Filter = &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslog.ResponseFlagFilter{Flags: []string{"NR"}},
	}}
	return []*accesslog.AccessLog{l}
}

func accessLog(m *meshconfig.MeshConfig) *accesslog.AccessLog {
	format := accessLogFormat(m)
	// A container's stdout can be a pipe that a process of another user may write to but not open again by name.
	if file := m.GetAccessLogFile(); file == "/dev/stdout" {
		return &accesslog.AccessLog{
			Name: "envoy.access_loggers.stdout",
			ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: anyOf(&streamaccesslog.StdoutAccessLog{
				AccessLogFormat: &streamaccesslog.StdoutAccessLog_LogFormat{LogFormat: format},
			})},
		}
	} else if file == "/dev/stderr" {
		return &accesslog.AccessLog{
			Name: "envoy.access_loggers.stderr",
			ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: anyOf(&streamaccesslog.StderrAccessLog{
				AccessLogFormat: &streamaccesslog.StderrAccessLog_LogFormat{LogFormat: format},
			})},
		}
	} else {
		return &accesslog.AccessLog{
			Name: "envoy.access_loggers.file",
			ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: anyOf(&fileaccesslog.FileAccessLog{
				Path:            file,
				AccessLogFormat: &fileaccesslog.FileAccessLog_LogFormat{LogFormat: format},
			})},
		}
	}
}

func accessLogFormat(m *meshconfig.MeshConfig) *core.SubstitutionFormatString {
	custom := m.GetAccessLogFormat()
	if m.GetAccessLogEncoding() != meshconfig.MeshConfig_JSON {
		text := textFormat
		if custom != "" {
			text = custom
			if text[len(text)-1] != '\n' {
				text += "\n"
			}
		}
		return &core.SubstitutionFormatString{Format: &core.SubstitutionFormatString_TextFormatSource{
			TextFormatSource: &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: text}},
		}}
	}
	fields := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	if custom != "" {
		var v map[string]any
		if err := json.Unmarshal([]byte(custom), &v); err == nil {
			if s, err := structpb.NewStruct(v); err == nil {
				fields = s
			}
		}
	}
	if len(fields.Fields) == 0 { // also when the custom format is not JSON: a log in the default format beats none
		for k, v := range jsonFormat {
			fields.Fields[k] = structpb.NewStringValue(v)
		}
	}
	return &core.SubstitutionFormatString{Format: &core.SubstitutionFormatString_JsonFormat{JsonFormat: fields}}
}
