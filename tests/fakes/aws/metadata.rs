//! Where a node finds its own role: the instance's metadata service (IMDSv2 alone, with its session token) and the
//! credentials endpoint of a container (ECS, EKS Pod Identity).

use std::time::Duration;

use serde_json::json;

use super::http::{Request, Response};
use super::sts;
use super::world::{Logged, World};

/// The session token of IMDSv2.
const TOKEN: &str = "imds-session-token";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// Path of the container's endpoint.
pub const CONTAINER: &str = "/v1/credentials";
/// What the container must show there.
pub const CONTAINER_TOKEN: &str = "container-authorization";

/// What a node's own environment gives it.
#[derive(Default)]
pub struct Node {
    /// The role of the instance profile; `None`: the instance has none.
    pub instance: Option<String>,
    /// The role of the task or pod.
    pub container: Option<String>,
}

/// Whether a request is one for this.
pub fn is_for_node(request: &Request) -> bool {
    request.path.starts_with("/latest/") || request.path == CONTAINER
}

/// Answers one of them.
pub fn answer(world: &mut World, request: &Request) -> Response {
    let (operation, answer) = match (request.method.as_str(), request.path.as_str()) {
        ("PUT", "/latest/api/token") => ("InstanceToken", token(request)),
        ("GET", CONTAINER) => ("ContainerCredentials", container(world, request)),
        ("GET", path) => match path.strip_prefix(ROLES) {
            Some("") => ("InstanceRole", named(world, request)),
            Some(name) => ("InstanceCredentials", instance(world, request, name)),
            None => ("InstanceMetadata", Err(404)),
        },
        _ => ("InstanceMetadata", Err(405)),
    };
    let outcome = answer.as_ref().map_or_else(u16::to_string, |_| "ok".to_owned());
    world.log.push(Logged { outcome, ..Logged::failed(operation, "") });
    answer.unwrap_or_else(|status| Response::new(status, "text/plain", Vec::new()))
}

fn token(request: &Request) -> Result<Response, u16> {
    let ttl = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds").ok_or(400_u16)?;
    let mut response = Response::new(200, "text/plain", TOKEN.into());
    response.headers.push(("x-aws-ec2-metadata-token-ttl-seconds", ttl.clone()));
    Ok(response)
}

fn authorised(request: &Request) -> Result<(), u16> {
    let token = request.headers.get("x-aws-ec2-metadata-token").map(String::as_str);
    if token == Some(TOKEN) { Ok(()) } else { Err(401) }
}

fn short(role: &str) -> &str {
    role.rsplit('/').next().unwrap_or(role)
}

fn named(world: &World, request: &Request) -> Result<Response, u16> {
    authorised(request)?;
    let role = world.node.instance.as_deref().ok_or(404_u16)?;
    Ok(Response::new(200, "text/plain", short(role).into()))
}

fn instance(world: &mut World, request: &Request, name: &str) -> Result<Response, u16> {
    authorised(request)?;
    let role = world.node.instance.clone().filter(|role| short(role) == name).ok_or(404_u16)?;
    Ok(give(world, role, "i-0123456789abcdef0"))
}

fn container(world: &mut World, request: &Request) -> Result<Response, u16> {
    if request.headers.get("authorization").map(String::as_str) != Some(CONTAINER_TOKEN) {
        return Err(403);
    }
    let role = world.node.container.clone().ok_or(404_u16)?;
    Ok(give(world, role, "task"))
}

fn give(world: &mut World, role: String, name: &str) -> Response {
    let given = sts::open_session(world, &role, name, Duration::from_secs(6 * 3600));
    let body = json!({"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-11-27T00:00:00Z", "RoleArn": role,
        "AccessKeyId": given.access_key, "SecretAccessKey": given.secret, "Token": given.token,
        "Expiration": given.end});
    Response::json(200, &body)
}
