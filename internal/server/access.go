package server

import (
	"context"
	"errors"
	"io"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	rpc "github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// rule is who may make a call. A call without a rule is refused to everybody.
type rule struct {
	// needs is the role that it takes.
	needs fleet.Role
	// about says that what the request is about is there for the caller, or why it is not: in the same words for what the
	// caller may not see and for what does not exist. It comes before the role.
	about func(st *fleet.State, t *fleet.Token, request proto.Message) error
}

// rules are those of ControlService. Each call is about one of these:
//   - anywhere: the handler answers with what the caller sees, and looks at callerOf(ctx) for it;
//   - inEnvironment: the environment that the request names; inStart: that in its first message;
//   - ofDeployment, ofHost: the deployment or host that it names;
//   - ofAll: what all environments share, which takes a token for all of them; ofAllIn: that in the one it names.
var rules = map[string]rule{
	rpc.ControlServiceGetServerInfoProcedure: {fleet.Viewer, anywhere},

	rpc.ControlServiceCreateEnvironmentProcedure: {fleet.Admin, ofAll},
	rpc.ControlServiceListEnvironmentsProcedure:  {fleet.Viewer, anywhere},
	rpc.ControlServiceSetVarsProcedure:           {fleet.Deployer, inEnvironment},
	rpc.ControlServiceListVarsProcedure:          {fleet.Viewer, inEnvironment},
	rpc.ControlServiceSetPlacementProcedure:      {fleet.Deployer, inEnvironment},
	rpc.ControlServiceListPlacementsProcedure:    {fleet.Viewer, inEnvironment},

	rpc.ControlServiceListHostsProcedure:       {fleet.Viewer, anywhere},
	rpc.ControlServiceDrainHostProcedure:       {fleet.Admin, ofHost},
	rpc.ControlServiceRemoveHostProcedure:      {fleet.Admin, ofHost},
	rpc.ControlServiceRevokeHostProcedure:      {fleet.Admin, ofHost},
	rpc.ControlServiceCreateJoinTokenProcedure: {fleet.Admin, ofAll},

	rpc.ControlServiceCreateReleaseProcedure: {fleet.Deployer, anywhere},
	rpc.ControlServiceGetReleaseProcedure:    {fleet.Viewer, anywhere},
	rpc.ControlServiceListReleasesProcedure:  {fleet.Viewer, anywhere},
	rpc.ControlServiceCheckManifestProcedure: {fleet.Viewer, inEnvironment},

	rpc.ControlServicePlanProcedure:            {fleet.Viewer, inEnvironment},
	rpc.ControlServiceDeployProcedure:          {fleet.Deployer, inEnvironment},
	rpc.ControlServiceRollbackProcedure:        {fleet.Deployer, inEnvironment},
	rpc.ControlServiceStopProcedure:            {fleet.Deployer, inEnvironment},
	rpc.ControlServiceRestartProcedure:         {fleet.Deployer, inEnvironment},
	rpc.ControlServiceSteerProcedure:           {fleet.Deployer, inEnvironment},
	rpc.ControlServiceScaleProcedure:           {fleet.Deployer, inEnvironment},
	rpc.ControlServiceListDeploymentsProcedure: {fleet.Viewer, inEnvironment},
	rpc.ControlServiceWatchDeploymentProcedure: {fleet.Viewer, ofDeployment},

	rpc.ControlServiceGetStatusProcedure:     {fleet.Viewer, inEnvironment},
	rpc.ControlServiceGetInstanceProcedure:   {fleet.Viewer, inEnvironment},
	rpc.ControlServiceListInstancesProcedure: {fleet.Viewer, inEnvironment},
	rpc.ControlServiceStreamLogsProcedure:    {fleet.Viewer, inEnvironment},
	rpc.ControlServiceExecProcedure:          {fleet.Deployer, inStart},

	rpc.ControlServiceListUsageProcedure:      {fleet.Viewer, inEnvironment},
	rpc.ControlServiceForwardPortProcedure:    {fleet.Deployer, inStart},
	rpc.ControlServiceListVolumesProcedure:    {fleet.Viewer, inEnvironment},
	rpc.ControlServiceGrowVolumeProcedure:     {fleet.Deployer, inEnvironment},
	rpc.ControlServiceDetachVolumeProcedure:   {fleet.Admin, inEnvironment},
	rpc.ControlServiceDeleteVolumeProcedure:   {fleet.Admin, inEnvironment},
	rpc.ControlServiceSnapshotVolumeProcedure: {fleet.Deployer, inEnvironment},
	rpc.ControlServiceDeleteSnapshotProcedure: {fleet.Deployer, inEnvironment},
	rpc.ControlServiceExportVolumeProcedure:   {fleet.Deployer, inEnvironment},
	rpc.ControlServiceImportVolumeProcedure:   {fleet.Deployer, inStart},

	rpc.ControlServiceGetQuotaProcedure:           {fleet.Viewer, inEnvironment},
	rpc.ControlServiceSetQuotaProcedure:           {fleet.Admin, ofAllIn},
	rpc.ControlServiceDestroyAppProcedure:         {fleet.Admin, inEnvironment},
	rpc.ControlServiceDestroyEnvironmentProcedure: {fleet.Admin, inEnvironment},

	rpc.ControlServicePutSecretProcedure:          {fleet.Deployer, inEnvironment},
	rpc.ControlServiceListSecretsProcedure:        {fleet.Viewer, inEnvironment},
	rpc.ControlServiceGetSecretProcedure:          {fleet.Viewer, inEnvironment},
	rpc.ControlServiceRevokeSecretProcedure:       {fleet.Admin, inEnvironment},
	rpc.ControlServiceLoginRegistryProcedure:      {fleet.Admin, inEnvironment},
	rpc.ControlServiceLogoutRegistryProcedure:     {fleet.Admin, inEnvironment},
	rpc.ControlServiceListRegistryLoginsProcedure: {fleet.Viewer, inEnvironment},
	rpc.ControlServiceSetRouteProcedure:           {fleet.Deployer, inEnvironment},
	rpc.ControlServiceUnsetRouteProcedure:         {fleet.Deployer, inEnvironment},
	rpc.ControlServiceListRoutesProcedure:         {fleet.Viewer, inEnvironment},

	rpc.ControlServiceStartRunProcedure: {fleet.Deployer, inEnvironment},
	rpc.ControlServiceStopRunProcedure:  {fleet.Deployer, inEnvironment},

	rpc.ControlServiceReadEventsProcedure:     {fleet.Viewer, anywhere},
	rpc.ControlServiceSignCheckpointProcedure: {fleet.Viewer, ofAll},

	rpc.ControlServiceCreateTokenProcedure: {fleet.Admin, anywhere},
	rpc.ControlServiceListTokensProcedure:  {fleet.Admin, anywhere},
	rpc.ControlServiceRevokeTokenProcedure: {fleet.Admin, anywhere},
}

func anywhere(*fleet.State, *fleet.Token, proto.Message) error { return nil }

func ofAll(_ *fleet.State, t *fleet.Token, _ proto.Message) error {
	if t.All {
		return nil
	}
	return refuse(connect.CodePermissionDenied, "this concerns all environments, and the token is not for all of them")
}

// inEnvironment has a token for one environment mean that when the request names none: without a name, some calls look
// everywhere.
func inEnvironment(st *fleet.State, t *fleet.Token, request proto.Message) error {
	m := request.ProtoReflect()
	field := m.Descriptor().Fields().ByName("environment")
	if field == nil || field.Kind() != protoreflect.StringKind {
		return errors.New("the request has no field for an environment: its rule is wrong")
	}
	if m.Get(field).String() == "" && !t.All {
		if len(t.Environments) != 1 {
			return refuse(connect.CodeInvalidArgument, "no environment was named: pass -e")
		}
		m.Set(field, protoreflect.ValueOfString(t.Environments[0]))
	}
	name := m.Get(field).String()
	if name == "" {
		return nil // the handler says what it thinks of that
	}
	return seesEnvironment(st, t, name)
}

func seesEnvironment(st *fleet.State, t *fleet.Token, name string) error {
	if st.Environment(name) != nil && t.Sees(name) {
		return nil
	}
	return noEnvironment(name, visible(st, t))
}

// visible are the environments that a token sees.
func visible(st *fleet.State, t *fleet.Token) []*fleet.Environment {
	return slices.DeleteFunc(st.Environments(), func(e *fleet.Environment) bool { return !t.Sees(e.Name) })
}

// inStart is inEnvironment for a stream whose first message says in its start what it is about.
func inStart(st *fleet.State, t *fleet.Token, request proto.Message) error {
	m := request.ProtoReflect()
	field := m.Descriptor().Fields().ByName("start")
	if field == nil || field.Message() == nil {
		return errors.New("the request has no start: its rule is wrong")
	}
	if !m.Has(field) {
		return refuse(connect.CodeInvalidArgument, "the first message has no start")
	}
	return inEnvironment(st, t, m.Get(field).Message().Interface())
}

// ofAllIn is for what limits an environment on behalf of the others.
func ofAllIn(st *fleet.State, t *fleet.Token, request proto.Message) error {
	if err := inEnvironment(st, t, request); err != nil {
		return err
	}
	return ofAll(st, t, request)
}

func ofDeployment(st *fleet.State, t *fleet.Token, request proto.Message) error {
	id := request.(interface{ GetDeployment() string }).GetDeployment()
	if d := st.Deployment(id); d == nil || !t.Sees(d.Environment) {
		return noDeployment(id)
	}
	return nil
}

func noDeployment(id string) error {
	return refuse(connect.CodeNotFound, "deployment %q does not exist", cut(id))
}

// ofHost takes a token for all environments, because what is done to a host is done to all of them.
func ofHost(st *fleet.State, t *fleet.Token, request proto.Message) error {
	id := request.(interface{ GetHost() string }).GetHost()
	if st.Host(id) == nil || !seesHost(st, t, id) {
		return noHost(id, visibleHosts(st, t))
	}
	return ofAll(st, t, request)
}

// seesHost reports whether something of an environment that the token sees is placed on a host.
func seesHost(st *fleet.State, t *fleet.Token, host string) bool {
	return t.All || slices.ContainsFunc(st.InstancesOn(host), func(i *fleet.Instance) bool { return t.Sees(i.Environment) })
}

func visibleHosts(st *fleet.State, t *fleet.Token) []*fleet.Host {
	return slices.DeleteFunc(st.Hosts(), func(h *fleet.Host) bool { return !seesHost(st, t, h.ID) })
}

// seesRelease reports whether an app of the release's name is in an environment that the token sees, or the release was
// made with the token.
func seesRelease(ctx context.Context, st *fleet.State, r *fleet.Release) bool {
	t := callerOf(ctx)
	return t.All || r.CreatedBy == actorOf(ctx) ||
		slices.ContainsFunc(t.Environments, func(env string) bool { return st.App(env, r.App) != nil })
}

func visibleReleases(ctx context.Context, st *fleet.State, app string) []*fleet.Release {
	return slices.DeleteFunc(st.Releases(app), func(r *fleet.Release) bool { return !seesRelease(ctx, st, r) })
}

// gate holds each call of ControlService against its rule, once its request has been read.
type gate struct{ *Server }

var _ connect.Interceptor = (*gate)(nil)

// admit says why a caller may not make a call.
func (g *gate) admit(ctx context.Context, procedure string, request any) error {
	r, ok := rules[procedure]
	message, isMessage := request.(proto.Message)
	if !ok || !isMessage {
		return refuse(connect.CodePermissionDenied, "nobody may call %s: it has no rule", procedure)
	}
	t := callerOf(ctx)
	var err error
	g.ledger.read(func(st *fleet.State) { err = r.about(st, t, message) })
	if err != nil {
		return g.onWire(ctx, err)
	}
	if !t.Role.Covers(r.needs) {
		return refuse(connect.CodePermissionDenied, "this takes the role %s, and the token %s has the role %s", r.needs, t.Name, t.Role)
	}
	return nil
}

// WrapUnary implements connect.Interceptor.
func (g *gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := g.admit(ctx, req.Spec().Procedure, req.Any()); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingHandler implements connect.Interceptor. The first message is what the rule is held against.
func (g *gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		guarded := &guardedConn{StreamingHandlerConn: conn, admit: func(first any) error {
			return g.admit(ctx, conn.Spec().Procedure, first)
		}}
		return cutOff(ctx, next(ctx, guarded))
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (g *gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// guardedConn is a stream of which nothing is handed on before its first message was admitted.
type guardedConn struct {
	connect.StreamingHandlerConn
	admit    func(first any) error
	admitted bool // owned by who receives
	refused  error
}

func (c *guardedConn) Receive(m any) error {
	if c.refused != nil {
		return c.refused
	}
	if err := c.StreamingHandlerConn.Receive(m); err != nil {
		return err
	}
	if c.admitted {
		return nil
	}
	if c.refused = c.admit(m); c.refused != nil {
		return c.refused
	}
	c.admitted = true
	return nil
}

// cutOff is the error of a call that was cut off in the words of why, and any other as it is.
func cutOff(ctx context.Context, err error) error {
	var why *connect.Error
	if err != nil && !errors.Is(err, io.EOF) && errors.As(context.Cause(ctx), &why) {
		return why
	}
	return err
}
