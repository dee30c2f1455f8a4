"""The console's labels in English and Chinese. What guards and scientists wrote is shown as they wrote it."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]

WORDS: dict[str, tuple[str, str]] = {
    # frame
    "console": ("Owner console", "数据方控制台"),
    "requests": ("Requests", "申请"),
    "budget": ("Budget", "预算"),
    "ledger": ("Ledger", "账本"),
    "jobs": ("Jobs", "任务"),
    "owners": ("Owners", "参与方"),
    "log out": ("Log out", "退出"),
    "cancel": ("Cancel", "取消"),
    "reason": ("Reason", "理由"),
    "reason needed": ("Please give a reason.", "请填写理由。"),
    "ended": ("Your session has ended. Log in again.", "会话已结束，请重新登录。"),
    "not shown": ("The console could not show this: {what}", "无法显示：{what}"),
    "of budget": ("of the budget is spent", "预算已消耗"),
    "retry": ("Try again", "重试"),
    "paused": ("This datasite is paused: {reason}", "本站已暂停：{reason}"),
    "not found": ("There is no such page.", "没有这个页面。"),
    # requests
    "no requests": ("No scientist has asked for anything yet.", "还没有科研人员提交申请。"),
    "from": ("From", "申请人"),
    "plan": ("Plan", "方案"),
    "status": ("Status", "状态"),
    "verdict": ("Verdict", "判定"),
    "pending": ("waits for you", "待处理"),
    "approved": ("approved", "已批准"),
    "denied": ("denied", "已拒绝"),
    "revoked": ("revoked", "已撤销"),
    "waiting": ("{count} waiting for your decision", "{count} 项待您决定"),
    "template": ("vetted template", "已审核模板"),
    "template with custom task": ("template with custom task", "模板加自定义任务"),
    "custom code": ("custom code, never run", "自定义代码，不会运行"),
    "no review": ("cannot be reviewed", "无法审核"),
    "objection": ("do not approve", "请勿批准"),
    "no plan": ("code that is not a plan", "并非训练方案的代码"),
    # review
    "back": ("All requests", "全部申请"),
    "request": ("Request {number}", "申请 {number}"),
    "means": ("What approving means", "批准意味着什么"),
    "in words": ("The plan in plain words", "方案说明"),
    "why not": ("Why it cannot be approved", "不能批准的原因"),
    "forecast": ("Forecast of epsilon", "epsilon 预测"),
    "forecast note": (
        "Upper bounds for adding or removing one {unit}, at delta {delta}, counted with everything released before.",
        "增减一个单位（{unit}）的上界，delta 为 {delta}，已计入此前的全部发布。",
    ),
    "forecast period note": (
        "Upper bounds for adding or removing one {unit}, at delta {delta}, counted with what was released in the last {days}"
        " days only, as the budget is.",
        "增减一个单位（{unit}）的上界，delta 为 {delta}，与预算一样只计入最近 {days} 天的发布。",
    ),
    "after": ("After", "之后"),
    "now": ("now", "现在"),
    "round": ("round {number}", "第 {number} 轮"),
    "epsilon": ("Epsilon", "epsilon"),
    "left": ("Left", "剩余"),
    "findings": ("Findings", "发现"),
    "no findings": (
        "None. A static look proves nothing; the verdict does not rest on it.",
        "无。静态检查并非证明；判定不依赖于它。",
    ),
    "critical": ("critical", "严重"),
    "warning": ("warning", "警告"),
    "note": ("note", "提示"),
    "line": ("line {number}", "第 {number} 行"),
    "difference": ("Difference from the vetted template", "与已审核模板的差异"),
    "custom task": ("Custom task, part of the signed plan", "自定义任务（签名方案的一部分）"),
    "code": ("Submitted code", "提交的代码"),
    "lines": ("{count} lines", "{count} 行"),
    "more lines": ("Show the next {count} of {left} lines", "再显示 {count} 行（余 {left} 行）"),
    "identity": ("What is bound by the decision", "决定所绑定的内容"),
    "plan digest": ("plan", "方案摘要"),
    "code digest": ("code", "代码摘要"),
    "scientist key": ("scientist's key", "科研人员公钥"),
    "noise": ("noise multiplier", "噪声倍数"),
    "sample rate": ("sample rate", "采样率"),
    "approve": ("Approve", "批准"),
    "deny": ("Deny", "拒绝"),
    "revoke": ("Revoke", "撤销"),
    "approve?": ("Approve request {number}?", "批准申请 {number}？"),
    "approve cost": (
        "What counts against the budget may then rise by epsilon {cost}: from {now} to at most {after} of {budget}, at delta"
        " {delta}. Taken alone, the plan may cost up to epsilon {alone}.",
        "计入预算的 epsilon 随后可增加 {cost}：从 {now} 至多到 {after}，上限 {budget}，delta 为 {delta}。"
        "单独计算时，该方案至多为 {alone}。",
    ),
    "deny?": ("Deny request {number}?", "拒绝申请 {number}？"),
    "revoke?": ("Revoke the approval of request {number}?", "撤销申请 {number} 的批准？"),
    "reason read": ("The scientist reads the reason.", "科研人员会看到该理由。"),
    "revoke note": (
        "The guard admits no more orders of it at once. What was spent stays spent.",
        "安全室立即不再接受其指令。已消耗的预算不会恢复。",
    ),
    "done approve": ("Request {number} is approved", "申请 {number} 已批准"),
    "done deny": ("Request {number} is denied", "申请 {number} 已拒绝"),
    "done revoke": ("The approval of request {number} is revoked", "申请 {number} 的批准已撤销"),
    "reason given": ("Reason given: {reason}", "理由：{reason}"),
    # budget
    "spent": ("spent", "已消耗"),
    "left to spend": ("left", "剩余"),
    "limit": ("budget", "预算上限"),
    "unit": ("protects one", "保护单位"),
    "record": ("record", "记录"),
    "subject": ("person (subject)", "个人"),
    "delta": ("at delta", "delta"),
    "accountant": ("accountant", "核算方法"),
    "in period": ("spent in the last {days} days", "最近 {days} 天已消耗"),
    "in total": ("spent in total", "总消耗"),
    "period caveat": (
        "The budget bounds what is spent within any {days} days. Nothing bounds the total, which keeps growing;"
        " what earlier releases tell about a {unit} does not fade.",
        "预算只限制任意 {days} 天内的消耗。总量没有上限，会持续增长；此前发布的内容中关于任一{unit}的信息不会随时间消失。",
    ),
    "over time": ("Epsilon over time, in total", "epsilon 随时间变化（总量）"),
    "nothing spent": ("Nothing has been spent.", "尚无消耗。"),
    "per plan": ("By plan", "按方案"),
    "per scientist": ("By scientist", "按科研人员"),
    "share note": (
        "How far the total rose when each order was paid for. The shares add up to the total; alone, a plan could cost more.",
        "每次付费时总量的增加。各项之和等于总量；单独计算时某个方案的消耗可能更高。",
    ),
    "trainings": ("{count} trainings", "{count} 次训练"),
    "trainings of": ("{count} of at most {most} trainings", "{count} 次训练，至多 {most} 次"),
    "undecided": ("plan {digest}, decided before decisions were kept", "方案 {digest}（记录决定之前）"),
    "unknown scientist": ("not recorded", "未记录"),
    # ledger
    "verified": (
        "Verified just now: {count} entries, every link and signature holds.",
        "刚刚核验：{count} 条，全部链接和签名有效。",
    ),
    "tampered": ("The ledger on disk does not verify: {what}", "磁盘上的账本未通过核验：{what}"),
    "head": ("Head", "链头"),
    "export": ("Export for an auditor", "导出给审计方"),
    "entry": ("Entry", "条目"),
    "time": ("Time (UTC)", "时间 (UTC)"),
    "kind": ("Kind", "类别"),
    "what": ("What", "内容"),
    "total": ("Total epsilon", "epsilon 总量"),
    "order": ("Order", "指令"),
    "open": ("opened", "开账"),
    "decision": ("decision", "决定"),
    "reserve": ("reserve", "预留"),
    "commit": ("commit", "提交"),
    "void": ("void", "作废"),
    "witness": ("witness", "见证"),
    # jobs
    "running": ("Running now", "正在运行"),
    "recent": ("Earlier", "此前"),
    "nothing runs": ("No training is running.", "当前没有训练。"),
    "nothing ran": ("Nothing has run yet.", "尚无运行记录。"),
    "step": ("step {step} of {steps}", "第 {step} 步，共 {steps} 步"),
    "seconds": ("{seconds} s", "{seconds} 秒"),
    "attempt": ("attempt {number}", "第 {number} 次尝试"),
    "training": ("training", "训练中"),
    "sealed": ("update sealed", "更新已密封"),
    "failed": ("failed", "失败"),
    "stopped": ("stopped", "已停止"),
    "stop": ("Stop", "停止"),
    "stop?": ("Stop this training?", "停止此训练？"),
    "stop note": (
        "The worker ends at once and no update of this order leaves. What was paid for it stays spent.",
        "进程立即结束，此指令的更新不会发出。已付的预算不会恢复。",
    ),
    "done stop": ("Stopped", "已停止"),
    "pause": ("Pause everything", "全部暂停"),
    "resume": ("Resume", "恢复"),
    "pause?": ("Pause this datasite?", "暂停本站？"),
    "pause note": (
        "Until you resume, the guard admits no order and opens no sum; what trains now ends, and waits sealed."
        " Scientists read the reason.",
        "在您恢复之前，安全室不接受指令，也不开启任何总和；正在进行的训练会完成并密封等待。科研人员会看到理由。",
    ),
    "done pause": ("Paused", "已暂停"),
    "done resume": ("Orders are taken again", "已恢复接受指令"),
    "working": ("This datasite takes orders.", "本站正在接受指令。"),
    # owners
    "not enrolled": (
        "This owner has not enrolled with others yet: fl-privacy owner enrol *.card",
        "尚未与其他参与方登记：fl-privacy owner enrol *.card",
    ),
    "registry": ("Registry {serial}", "名册 {serial}"),
    "compare": (
        "Read this line to every other owner by telephone, and let them read theirs. If all are equal, every card is true.",
        "请通过电话与每个参与方互相念出此行。若全部相同，则下列所有名片均真实。",
    ),
    "all of it": ("Fingerprint of all of it", "整体指纹"),
    "signed": ("signed", "已签名"),
    "not signed": ("not signed yet", "尚未签名"),
    "you": ("you", "本方"),
    "fingerprint": ("Fingerprint", "指纹"),
    "key names": ("Encryption keys held", "持有的加密密钥"),
    "no keys": ("No encryption key has arrived yet.", "尚未收到加密密钥。"),
    "key note": (
        "A key's public name, the same at every owner to whom the key was dealt.",
        "密钥的公开名称，所有获得该密钥的参与方相同。",
    ),
    "signing key": ("Your public signing key", "本方签名公钥"),
}


def say(language: Language, key: str, **values: object) -> str:
    """The label in a language; a key that is no label (a state from a newer guard, say) is shown as it is."""
    if key not in WORDS:
        return key
    text = WORDS[key][0 if language == "en" else 1]
    return text.format(**values) if values else text
